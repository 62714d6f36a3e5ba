"""Logs of several parts are one story, in order of time, also while it goes on."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli.main import main
from infra.operate.part_log import LogLine, PartLogs
from streams.core.errors import ConfigError


def line(part: str, second: int, event: str, **more: object) -> str:
    return json.dumps({"event": event, "part": part, "level": "info", "timestamp": f"2026-01-01T00:00:{second:02}Z", **more}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "up"
    (folder / "logs").mkdir(parents=True)
    (folder / "config.toml").write_text("")
    (folder / "logs" / "actor.log").write_text(line("actor", 1, "starting") + line("actor", 4, "adapter live", adapter="default@1"))
    (folder / "logs" / "learner.log").write_text(
        line("learner", 2, "step", step=1) + "Traceback: not one of ours\n" + line("learner", 5, "step", step=2)
    )
    (folder / "broker").mkdir()
    (folder / "broker" / "kafka.log").write_text("2026 INFO Kafka says\n")
    return folder


def told(lines: list[LogLine]) -> list[str]:
    return [f"{each.part} {each.told.get('event', each.raw)}" for each in lines]


def test_lines_of_all_parts_are_in_order_of_time_and_a_traceback_stays_with_its_line(run: Path) -> None:
    assert told(PartLogs(run).last(0)) == [
        "actor starting",
        "learner step",
        "learner Traceback: not one of ours",
        "actor adapter live",
        "learner step",
    ]
    assert told(PartLogs(run).last(2)) == ["actor adapter live", "learner step"]
    assert told(PartLogs(run, ["kafka"]).last(5)) == ["kafka 2026 INFO Kafka says"]


def test_times_bound_what_is_shown(run: Path) -> None:
    at = lambda second: datetime(2026, 1, 1, second=second, tzinfo=UTC)  # noqa: E731
    assert told(PartLogs(run).last(0, since=at(4))) == ["actor adapter live", "learner step"]
    assert told(PartLogs(run).last(0, until=at(2))) == ["actor starting"]


def test_new_lines_follow_once_they_are_whole_and_a_log_that_was_replaced_begins_again(run: Path) -> None:
    logs = PartLogs(run)
    logs.last(0)
    assert logs.new() == []
    log = run / "logs" / "actor.log"
    whole = line("actor", 6, "stopped")
    with log.open("a") as stream:
        stream.write(whole[:20])
    assert logs.new() == []
    with log.open("a") as stream:
        stream.write(whole[20:])
    assert told(logs.new()) == ["actor stopped"]
    log.write_text(line("actor", 7, "anew"))
    assert told(logs.new()) == ["actor anew"]
    turns = iter([False, False, True])
    (run / "logs" / "learner.log").open("a").write(line("learner", 8, "step", step=3))
    shown: list[LogLine] = []
    logs.follow(shown.append, lambda _: next(turns))
    assert told(shown) == ["learner step"]


def test_a_part_without_a_log_is_told_with_those_that_have_one(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"acter has no log in .*; there are actor, learner, kafka"):
        PartLogs(run, ["acter"])


def test_the_command_shows_text_for_people_and_json_for_programs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    text = CliRunner().invoke(main, ["logs", "actor"]).output
    assert text.splitlines() == ["00:00:01 actor     starting", "00:00:04 actor     adapter live adapter=default@1"]
    lines = CliRunner().invoke(main, ["logs", "--json", "-n", "3"]).output.splitlines()
    assert [json.loads(each)["part"] for each in lines] == ["learner", "actor", "learner"]
