"""The health of every part, from what the ring says and what the parts answer themselves."""

import json
import os
from pathlib import Path

import pytest

from infra.local.part_states import restarts_of, write_states
from infra.operate.part_health import PartHealth, health_lines, health_of
from infra.settings.config import Settings, load

Answers = dict[str, tuple[int, object]]
WELL: Answers = {"healthz": (200, {"status": "alive", "hanging": []}), "readyz": (200, {"status": "ready", "missing": []}), "metrics": (200, "")}
ADDRESSES = {"streams": "127.0.0.1:1", "reward": "127.0.0.1:2", "learner": "127.0.0.1:3", "actor": "127.0.0.1:8000"}


class Parts:
    """A run folder with a ring in it, and what its parts answer."""

    def __init__(self, folder: Path, states: dict[str, str], **answers: Answers) -> None:
        self._answers = {ADDRESSES[name]: WELL | told for name, told in answers.items()}
        (folder / "run.lock").write_text(str(os.getpid()))
        write_states(folder, states, {"reward": 2})
        for name in ("streams", "reward", "learner"):
            (folder / "state" / name).mkdir(parents=True)
            (folder / "state" / name / "address").write_text(ADDRESSES[name] + "\n")
        self.settings: Settings = load("laptop", (f"run_folder={folder}",), {})

    def ask(self, url: str) -> tuple[int, bytes]:
        address, _, path = url.removeprefix("http://").partition("/")
        if address not in self._answers:
            raise ConnectionRefusedError
        status, told = self._answers[address][path]
        return status, told.encode() if isinstance(told, str) else json.dumps(told).encode()

    @property
    def found(self) -> dict[str, PartHealth]:
        return {part.name: part for part in health_of(self.settings, self.ask, lambda: 1_000.0)}


RUN = dict.fromkeys(("kafka", "actor", "streams", "reward", "learner"), "runs")


def test_parts_tell_whether_they_are_ready_how_far_behind_and_how_old(tmp_path: Path) -> None:
    metrics = 'tidemill_consumer_lag_records{part="join",topic="a"} 3.0\ntidemill_consumer_lag_records{part="lake",topic="a"} 4.0\n'
    metrics += 'tidemill_start_time_seconds{part="streams"} 400.0\n'
    parts = Parts(tmp_path, RUN, streams={"metrics": (200, metrics)}, actor={}, reward={}, learner={})
    found = parts.found
    assert {name: part.state for name, part in found.items()} == dict.fromkeys(RUN, "ready")
    assert (found["streams"].lag, found["streams"].up_s, found["actor"].lag) == (7, 600.0, None)
    lines = health_lines(list(found.values()))
    assert "streams  ready, 7 records behind" in lines
    assert "reward   ready, 2 restarts" in lines


def test_a_part_that_waits_hangs_or_is_dead_is_told_in_words(tmp_path: Path) -> None:
    states = RUN | {"learner": "keeps dying", "kafka": "died"}
    parts = Parts(tmp_path, states, actor={"healthz": (503, {"hanging": ["engine"]})}, streams={"readyz": (503, {"missing": ["kafka", "lake"]})})
    told = {name: (part.state, part.told) for name, part in parts.found.items()}
    assert told == {
        "kafka": ("died", "died"), "actor": ("hangs", "hangs: engine"), "streams": ("waits", "waits for kafka, lake"),
        "reward": ("down", "starts or hangs: it does not answer"), "learner": ("keeps dying", "keeps dying"),
    }  # fmt: skip


@pytest.mark.parametrize("body", ["not json", {"other": 1}, []])
def test_an_answer_of_another_kind_is_no_crash(tmp_path: Path, body: object) -> None:
    assert Parts(tmp_path, RUN, actor={"readyz": (503, body)}).found["actor"].state == "waits"


def test_without_a_ring_here_parts_are_asked_where_the_settings_say(tmp_path: Path) -> None:
    parts = Parts(tmp_path, RUN, actor={}, streams={})
    (tmp_path / "run.lock").unlink()
    assert list(parts.found) == ["actor"], "its address is a setting; the others chose their ports"
    assert restarts_of(tmp_path) == {}
    parts.settings = load("laptop", (f"run_folder={tmp_path}", "metrics_port=1"), {})
    assert {name: part.state for name, part in parts.found.items()} == {"streams": "ready", "reward": "down", "actor": "ready", "learner": "down"}
