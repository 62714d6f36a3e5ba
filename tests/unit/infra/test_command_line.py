"""What all commands share: exit statuses, confirmation, suggestions, and that nothing is imported before it is used."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from infra.cli import confirmation
from infra.cli.confirmation import Confirmation
from infra.cli.exit_codes import ExitCode
from infra.cli.main import Front, main
from infra.local.stop_signals import StopRequested
from infra.settings.config import Settings, load
from infra.settings.setting_path import paths_in
from infra.settings.settings_file import QUESTIONS, SUGGESTED
from streams.core.errors import ConfigError


def typed(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(main, words, env=environment)


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("ends_with", "status", "told"), [
    (ConfigError("set a.b"), ExitCode.FIXABLE, "tidemill: set a.b\n"),
    (StopRequested("stopped"), ExitCode.STOPPED, "tidemill: stopped\n"),
    (KeyboardInterrupt(), ExitCode.STOPPED, "tidemill: stopped\n"),
    (click.Abort(), ExitCode.STOPPED, "tidemill: stopped\n"),
    (ModuleNotFoundError(name="torch"), ExitCode.FIXABLE, "'torch' is missing"),
    (RuntimeError("oops"), ExitCode.BUG, "RuntimeError: oops\ntidemill: this is a bug"),
    (click.UsageError("wrong"), ExitCode.USAGE, "Error: wrong"),
    (SystemExit(ExitCode.FAULT_FOUND), ExitCode.FAULT_FOUND, ""),
])  # fmt: skip
def test_what_ends_a_command_has_an_exit_status_and_only_a_bug_a_traceback(ends_with: BaseException, status: ExitCode, told: str) -> None:
    @click.group(cls=Front)
    def front() -> None: ...

    @front.command()
    def one() -> None:
        raise ends_with

    result = CliRunner().invoke(front, ["one"])
    assert (result.exit_code, told in result.output) == (status, True), result.output
    assert ("Traceback" in result.output) == (status == ExitCode.BUG)


def test_exit_statuses_are_different_and_fit_into_a_byte() -> None:
    assert sorted({int(code) for code in ExitCode}) == sorted(map(int, ExitCode))
    assert all(0 <= code <= 255 and code.sentence for code in ExitCode)


class Terminal:
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("given", "on_terminal", "answer", "done"), [
    (Confirmation(dry_run=True, yes=False), True, None, False), (Confirmation(dry_run=False, yes=True), False, None, True),
    (Confirmation(dry_run=False, yes=False), True, True, True), (Confirmation(dry_run=False, yes=False), True, False, False),
    (Confirmation(dry_run=False, yes=False), False, None, "usage"),
])  # fmt: skip
def test_a_change_needs_a_word(given: Confirmation, on_terminal: bool, answer: bool | None, done: object, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    if on_terminal:
        monkeypatch.setattr(confirmation.sys, "stdin", Terminal())
    monkeypatch.setattr(confirmation.click, "confirm", lambda text, err: (asked.append(text), answer)[1])
    try:
        found: object = given.given("delete 3 artifacts")
    except click.UsageError as error:
        found = "usage" if "--yes" in str(error) and "--dry-run" in str(error) else error
    assert found == done
    assert asked == (["Delete 3 artifacts?"] if answer is not None else [])


def test_every_command_that_deletes_or_promotes_has_the_same_two_options() -> None:
    for name in ("prune", "erase", "promote", "approve"):
        options = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {"--dry-run", "--yes"} <= options, name
    assert typed("prune", "--dry-run", "--yes").exit_code == ExitCode.USAGE


@pytest.mark.parametrize(("words", "environment", "told"), [
    (["config", "--set", "learner.rnak=4"], {}, "did you mean learner.rank?"),
    (["config", "--set", "actor.run_folder=x"], {}, "did you mean run_folder?"),
    (["config", "--set", "lerner.rank=4"], {}, "did you mean learner?"),
    (["config", "--set", "kafka.rank=4"], {}, "did you mean learner.rank?"),
    (["config"], {"TIDEMILL_LERNER__RANK": "4"}, "did you mean learner.rank?"),
    (["config"], {"TIDEMILL_METRICS_PROT": "4"}, "did you mean metrics_port?"),
    (["config", "explain", "learner.rnak"], {}, "did you mean learner.rank?"),
    (["stauts"], {}, "status"), (["config", "--sett", "a=b"], {}, "--set"),
])  # fmt: skip
def test_a_misspelt_setting_command_or_option_is_told_with_what_was_meant(words: list[str], environment: dict[str, str], told: str) -> None:
    result = typed(*words, **environment)
    assert result.exit_code in (ExitCode.FIXABLE, ExitCode.USAGE)
    assert told in result.output, result.output


def test_nothing_is_suggested_for_what_is_like_no_setting() -> None:
    assert "did you mean" not in typed("config", "--set", "qqqq.zzzz=1").output


def test_a_setting_is_explained_with_where_its_value_comes_from(at_home: Path) -> None:
    def told(*words: str, **environment: str) -> dict[str, Any]:
        return dict(json.loads(CliRunner().invoke(main, ["config", "explain", "learner.rank", "--json", *words], env=environment).stdout))

    by_default = told()
    assert (by_default["value"], by_default["source"], by_default["variable"]) == (8, "the default", "TIDEMILL_LEARNER__RANK")
    (at_home / "tidemill.toml").write_text("[learner]\nrank = 4\n")
    assert told()["source"].endswith("tidemill.toml")
    assert told(TIDEMILL_LEARNER__RANK="16")["source"] == "variable TIDEMILL_LEARNER__RANK"
    assert (told("--set", "learner.rank=2")["value"], told("--set", "learner.rank=2")["source"]) == (2, "--set learner.rank")
    text = typed("config", "explain", "promotion.mode").stdout
    assert "one of newest, gated" in text
    assert "is a section; its settings are" in typed("config", "explain", "learner").output
    hush = typed("config", "explain", "console.operator_key", TIDEMILL_CONSOLE__OPERATOR_KEY="hush-hush-hush")
    assert ("(secret)" in hush.output, "hush-hush" in hush.output) == (True, False)


def test_config_prints_what_up_would_start_with(at_home: Path) -> None:
    assert tomllib.loads(typed("config").stdout)["run_folder"] == "runs/up"
    assert json.loads(typed("config", "--json", "--set", "learner.rank=4").stdout)["learner"]["rank"] == 4


def test_init_writes_a_commented_file_that_every_command_then_finds(at_home: Path) -> None:
    done = typed("init", "--run-folder", "runs/mine", "--port", "8123", "--promotion", "gated", "--kafka", "kafka-1:9092")
    assert done.exit_code == 0, done.output
    text = (at_home / "tidemill.toml").read_text()
    settings = load(at_home / "tidemill.toml", (), {})
    assert (settings.actor.port, settings.promotion.mode, settings.kafka.bootstrap_servers) == (8123, "gated", "kafka-1:9092")
    assert tomllib.loads(typed("config").stdout)["run_folder"] == "runs/mine"
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if " = " in line:
            assert lines[number - 1].startswith("# "), f"no comment: {line}"
    again = typed("init")
    assert (again.exit_code, "--force" in again.output, text) == (ExitCode.FIXABLE, True, (at_home / "tidemill.toml").read_text())
    assert typed("init", "--force").exit_code == 0
    assert "\n# bootstrap_servers = …" in (at_home / "tidemill.toml").read_text(), "none was given"
    assert typed("init", "--force", "--port", "99999").exit_code == ExitCode.USAGE
    assert typed("init", "--file", "deep/other.toml").exit_code == 0
    assert (at_home / "deep" / "other.toml").exists()


def test_what_init_suggests_in_comments_are_settings_with_their_defaults(at_home: Path) -> None:
    known = set(paths_in(Settings))
    assert {question.key for question in QUESTIONS} | set(SUGGESTED) <= known
    typed("init")
    text = (at_home / "tidemill.toml").read_text()
    all_on = "\n".join(line.removeprefix("# ") if " = " in line and " = …" not in line else "" if line.startswith("#") else line
                       for line in text.splitlines())  # fmt: skip
    (at_home / "all.toml").write_text(all_on)
    assert load(at_home / "all.toml", (), {}).learner == load(None, (), {}).learner


def test_keys_are_one_family_and_the_earlier_name_still_works() -> None:
    assert "TIDEMILL_SIGNING__PRIVATE_KEY=" in typed("keygen").output
    key = typed("keys", "operator").output.split("TIDEMILL_CONSOLE__OPERATOR_KEY=")[1].strip()
    assert load(None, (), {"TIDEMILL_CONSOLE__OPERATOR_KEY": key}).console.operator_key is not None
    person = typed("keys", "person").output.split("TIDEMILL_ERASURE__PERSON_KEY=")[1].strip()
    assert load(None, (), {"TIDEMILL_ERASURE__PERSON_KEY": person}).erasure.person_key is not None
    assert "keygen" not in typed("--help").output


def test_api_keys_are_kept_where_the_settings_say(at_home: Path) -> None:
    (at_home / "tidemill.toml").write_text('[actor]\nkeys_file = "secrets/keys.json"\n')
    (at_home / "secrets").mkdir()
    assert typed("keys", "add", "--tenant", "acme", "--scope", "talk").exit_code == 0
    assert (at_home / "secrets" / "keys.json").exists()
    (one,) = json.loads(typed("keys", "list", "--json").stdout)
    assert (one["tenant"], one["scopes"]) == ("acme", ["talk"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_this_program(shell: str) -> None:
    result = typed("completion", shell)
    assert (result.exit_code, "_TIDEMILL_COMPLETE" in result.output) == (0, True)


HEAVY = {"torch", "transformers", "vllm", "ray", "faust", "peft", "kafka", "pyarrow", "fastapi", "uvicorn", "openai", "httpx", "pydantic",
         "structlog", "numpy", "prometheus_client", "cryptography", "yaml"}  # fmt: skip
"""Top-level modules that take a while to import."""


def imported(*words: str) -> set[str]:
    """Top-level modules that a command has imported by its end, in a process of its own."""
    code = (
        "import sys\nfrom infra.cli.main import main\n"
        f"try:\n    main({list(words)!r}, prog_name='tidemill')\nexcept SystemExit:\n    pass\n"
        "print('\\n'.join(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    assert imported("--help") & HEAVY == set()
    assert imported("reward", "tune", "--help") & HEAVY == set()


def test_commands_that_look_at_a_ring_import_no_model_library(at_home: Path) -> None:
    """As far as a command gets without Kafka: everything at the head of its modules."""
    heaviest = {"torch", "transformers", "vllm", "ray", "faust", "peft", "fastapi", "uvicorn", "openai"}
    for words in (
        ("status", "--set", "kafka.bootstrap_servers=127.0.0.1:9"),
        ("logs",),
        ("config",),
        ("promotions", "--set", "kafka.bootstrap_servers=127.0.0.1:9"),
    ):
        assert imported(*words) & heaviest == set(), words
