"""Every command finds run and settings by the same rules, and says which run it took where it had to choose."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli.main import main
from infra.local.part_states import LOCK_FILE
from infra.settings.config import load, to_toml, without_settings
from infra.settings.run_choice import NoRun, RunChoice
from streams.core.errors import ConfigError

CLUSTER = "kafka.bootstrap_servers=kafka-1:9092"


def started(folder: Path, at_s: int, *overrides: str) -> Path:
    """A run folder as a ring leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(load("laptop", (f"run_folder={folder}", "kafka.bootstrap_servers=127.0.0.1:9", *overrides), {})))
    os.utime(folder / "config.toml", (at_s, at_s))
    return folder


def choice(folder: Path, *overrides: str, run: str | None = None, config: str | None = None, **variables: str) -> RunChoice:
    return RunChoice(run, config, overrides, folder, variables)


def test_a_flag_beats_a_variable_beats_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "tidemill.toml").write_text('run_folder = "from-file"')
    named = {"TIDEMILL_RUN_FOLDER": str(tmp_path / "from-variable")}
    assert choice(tmp_path).load("laptop").run_folder == tmp_path / "from-file"
    assert choice(tmp_path, **named).load("laptop").run_folder == tmp_path / "from-variable"
    assert choice(tmp_path, f"run_folder={tmp_path / 'from-set'}", **named).load("laptop").run_folder == tmp_path / "from-set"
    assert choice(tmp_path, run="mine", **named).load("laptop").run_folder == tmp_path / "runs" / "mine"
    assert choice(tmp_path, run=f"{tmp_path}/elsewhere").load("laptop").run_folder == tmp_path / "elsewhere"


def test_a_settings_file_above_holds_in_every_folder_below_and_its_paths_count_from_there(tmp_path: Path) -> None:
    below = tmp_path / "notes" / "deep"
    below.mkdir(parents=True)
    (tmp_path / "tidemill.toml").write_text(
        'run_folder = "mine"\nartifacts_uri = "store"\n[lake]\nuri = "s3://bucket/lake"\n[actor]\nkeys_file = "keys.json"\n[policy]\nbase = "tiny"\n'
    )
    settings = choice(below).load()
    at = lambda path: Path(path).resolve()  # noqa: E731
    assert at(settings.run_folder) == tmp_path / "mine"
    assert at(str(settings.artifacts_uri)) == tmp_path / "store"
    assert at(settings.actor.keys_file or "") == tmp_path / "keys.json"
    assert (settings.lake.uri, settings.policy.base) == ("s3://bucket/lake", "tiny")
    assert at(choice(below, run="other").load().run_folder) == tmp_path / "runs" / "other"
    (tmp_path / "tidemill.toml").write_text('[policy]\nbase = "models/mine"\n')
    assert at(choice(below).load().policy.base) == tmp_path / "models" / "mine"
    assert at(choice(below).load().run_folder) == tmp_path / "runs" / "default"


def test_a_named_settings_file_is_taken_instead_of_the_one_found(tmp_path: Path) -> None:
    (tmp_path / "tidemill.toml").write_text("[actor]\nport = 8111\n")
    (tmp_path / "other.toml").write_text("[actor]\nport = 8222\n")
    assert choice(tmp_path, config=str(tmp_path / "other.toml")).load("laptop").actor.port == 8222
    assert choice(tmp_path).load("laptop").actor.port == 8111


def test_the_ring_that_runs_is_taken_before_the_newest_run(tmp_path: Path) -> None:
    old, new = started(tmp_path / "runs" / "old", 1_000_000, "actor.port=8001"), started(tmp_path / "runs" / "new", 2_000_000, "actor.port=8002")
    said: list[str] = []
    assert choice(tmp_path).of_run(said.append).actor.port == 8002
    (old / LOCK_FILE).write_text(str(os.getpid()))
    running = choice(tmp_path).of_run(said.append)
    assert (running.run_folder, running.actor.port, running.kafka.bootstrap_servers) == (old, 8001, "127.0.0.1:9")
    assert said == [f"run {new} (the newest; --run names another)", f"run {old} (it runs now; --run names another)"]


def test_the_only_run_is_taken_without_a_word(tmp_path: Path) -> None:
    started(tmp_path / "runs" / "up", 1_000_000)
    said: list[str] = []
    assert choice(tmp_path).of_run(said.append).run_folder == tmp_path / "runs" / "up"
    assert said == []


def test_settings_that_name_a_cluster_look_for_no_run_here(tmp_path: Path) -> None:
    started(tmp_path / "runs" / "up", 1_000_000)
    assert choice(tmp_path, CLUSTER).of_run().kafka.bootstrap_servers == "kafka-1:9092"


def test_no_run_and_no_run_of_that_name_are_told_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match="start one with `tidemill up`"):
        choice(tmp_path).of_run()
    started(tmp_path / "runs" / "up", 1_000_000)
    with pytest.raises(NoRun, match=r"--run upp: there is no folder .*runs/upp; runs here: .*runs/up$"):
        choice(tmp_path, run="upp").of_run()


def test_a_run_named_twice_is_wrong_usage() -> None:
    told = CliRunner().invoke(main, ["config", "--run", "a", "--set", "run_folder=b"])
    assert (told.exit_code, "both name the run" in told.output) == (2, True)


@pytest.mark.parametrize("command", ["status", "ledger", "topics", "promotions", "prune"])
def test_commands_about_a_ring_say_that_there_is_none(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(main, [command])
    assert (told.exit_code, "there is no run in runs" in told.output) == (1, True), told.output


def test_a_part_is_given_no_variable_that_overrides_the_file_of_its_ring() -> None:
    variables = {"PATH": "/bin", "TIDEMILL_CACHE": "/cache", "TIDEMILL_ACTOR__PORT": "8001", "TIDEMILL_RUN_FOLDER": "elsewhere"}
    service = {"TIDEMILL_ACTOR_PORT": "tcp://10.0.0.1:8000"}
    assert without_settings(variables | service) == {"PATH": "/bin", "TIDEMILL_CACHE": "/cache"} | service
    with pytest.raises(ConfigError):
        load(None, (), {"TIDEMILL_NOTHING": "1"})
