"""Options and kinds of values that many commands share."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from infra.settings.run_choice import RunChoice

RUN_HELP = (
    "Folder of the run, or NAME for runs/NAME. Without it: TIDEMILL_RUN_FOLDER, tidemill.toml, or the run of runs/ that runs now or is the newest."
)
CONFIG_HELP = "A TOML file, or a configuration that comes with Tidemill: demo, laptop, gpu. Without it: tidemill.toml in this folder or above."


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--run``, ``--config`` and ``--set``, which every command that reads settings takes. The command gets them as ``choice``, a RunChoice."""

    @wraps(command)
    def with_choice(*arguments: Any, run_named: str | None, config: str | None, overrides: tuple[str, ...], **options: Any) -> None:
        command(*arguments, choice=choice_of(run_named, config, overrides), **options)

    return click.option("--run", "run_named", default=None, metavar="FOLDER|NAME", help=RUN_HELP)(file_options(with_choice))


def file_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--config`` and ``--set`` alone."""
    command = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable.")(command)
    return click.option("--config", default=None, metavar="FILE|NAME", help=CONFIG_HELP)(command)


def choice_of(run: str | None, config: str | None, overrides: tuple[str, ...]) -> "RunChoice":
    """The choice that these options make. Raises UsageError when two of them name a run."""
    from infra.settings.run_choice import RunChoice  # imported when a command runs: pydantic and all settings take a while

    if run is not None and any(override.partition("=")[0] == "run_folder" for override in overrides):
        raise click.UsageError(f"--run {run} and --set run_folder=… both name the run: give one of them")
    return RunChoice(run, config, overrides)


json_option = click.option("--json", "as_json", is_flag=True, help="JSON.")


def since_until(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``--since`` (inclusive) and ``--until`` (exclusive), wherever a command reads times. ``what``: such as "records that arrived"."""

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        until = click.option("--until", "--to", "until", type=Time(), default=None, help=f"Only {what} before this time.")(command)
        told = f"Only {what} at or after this time (UTC unless it has a zone)."
        return click.option("--since", "--from", "since", type=Time(), default=None, help=told)(until)

    return decorated


def warn(line: str) -> None:
    """Show a line on standard error, apart from what the command prints."""
    click.echo(line, err=True)


def progress_line(line: str) -> None:
    """Show what is being done, on standard error: on a terminal each line in place of the one before, an empty one to end."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[2K{line}", nl=False, err=True)
    elif line:
        click.echo(line, err=True)


class Time(click.ParamType[datetime]):
    """ISO 8601; without a zone it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time: write 2026-03-01 or 2026-03-01T12:00:00+01:00", param, ctx)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
