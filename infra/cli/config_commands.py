"""``tidemill config``, ``config explain``, ``init`` and ``completion``."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.cli.shared_options import choice_of, json_option, settings_options

if TYPE_CHECKING:
    from infra.settings.run_choice import RunChoice

SHELLS = {
    "bash": 'eval "$(tidemill completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(tidemill completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "tidemill completion fish | source    # in ~/.config/fish/config.fish",
}
"""Shells that can complete, and how to switch it on."""


@click.group(name="config", invoke_without_command=True)
@json_option
@settings_options
@click.pass_context
def config_commands(ctx: click.Context, as_json: bool, choice: "RunChoice") -> None:
    """Print the resolved settings as TOML, without secrets. `config explain KEY` tells one of them."""
    if ctx.invoked_subcommand is not None:
        ctx.obj = choice
        return
    import tomllib

    from infra.settings.config import to_toml

    told = to_toml(choice.load("laptop"))
    click.echo(json.dumps(tomllib.loads(told), indent=1) if as_json else told, nl=as_json)


@config_commands.command()
@click.argument("key")
@json_option
@settings_options
@click.pass_obj
def explain(outer: "RunChoice", key: str, as_json: bool, choice: "RunChoice") -> None:
    """Tell what the setting KEY (such as learner.rank) does, its value, where that comes from, its default and its bounds."""
    from infra.settings.setting_explained import explained

    given = choice_of(choice.run or outer.run, choice.config or outer.config, (*outer.overrides, *choice.overrides))  # before or after `explain`
    found = explained(key, given)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else str(found))


@click.command()
@click.option(
    "--file", "path", default=Path("tidemill.toml"), show_default=True, type=click.Path(path_type=Path, dir_okay=False), help="File to write."
)
@click.option("--run-folder", default=None, help="Folder of the run.")
@click.option("--port", default=None, type=click.IntRange(0, 65535), help="Port of the OpenAI API.")
@click.option("--base", default=None, help="smollm2, tiny, or the folder of your own model.")
@click.option("--kafka", default=None, metavar="HOST:PORT,…", help="Your own Kafka. Without it, one is started with the ring.")
@click.option("--promotion", default=None, type=click.Choice(["newest", "gated"]), help="How an adapter comes to answer.")
@click.option("--metrics-port", default=None, type=click.IntRange(0, 65535), help="First port of the parts' metrics; 0: free ones.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def init(path: Path, force: bool, **given: Any) -> None:
    """Write a commented settings file. Asks for what no option gives, on a terminal; elsewhere takes the defaults."""
    from infra.settings.settings_file import QUESTIONS, commented
    from streams.core.errors import ConfigError

    if path.exists() and not force:
        raise ConfigError(f"{path} exists: change it, or replace it with --force")
    answers: dict[str, Any] = {}
    for question in QUESTIONS:
        value = given[question.option]
        if value is None and sys.stdin.isatty():
            value = click.prompt(question.text, default=question.default, show_default=True, err=True)
        answers[question.key] = question.default if value is None else value
    text = commented(answers)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    click.echo(f"wrote {path}; next: tidemill doctor, tidemill up")


@click.command()
@click.argument("shell", type=click.Choice(sorted(SHELLS)))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in SHELL."""
    from click.shell_completion import get_completion_class

    from infra.cli.main import main

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(main, {}, "tidemill", "_TIDEMILL_COMPLETE").source())
