"""``tidemill restart``: a part stops and starts again while the others go on, and it counts as no death."""

import os
import sys
from pathlib import Path

import pytest

from infra.local.local_ring import Ring, lock_run
from infra.local.part_states import write_states
from infra.local.processes import Processes
from infra.operate.restart_requests import await_restart, request_restart, requested
from infra.settings.config import Settings
from streams.core.errors import ConfigError, Unavailable
from tests.support.running import wait_for

SAYS_PID = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
DEAF = (sys.executable, "-c", "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)")


class HandClock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def pids(log: Path) -> list[int]:
    return [int(pid) for pid in log.read_text().split()]


def test_a_part_that_is_asked_to_runs_anew_and_no_death_is_counted(tmp_path: Path) -> None:
    ring = Ring(Settings(run_folder=tmp_path), lambda _: None, keeps_going=True)
    ring.processes.start_command("streams", SAYS_PID)
    ring.processes.start_command("actor", SAYS_PID)
    lock = lock_run(tmp_path)
    wait_for(lambda: all((tmp_path / "logs" / f"{name}.log").read_text().endswith("\n") for name in ("streams", "actor")), 20)
    ring.check()
    asked = request_restart(tmp_path, "streams")

    def restarted() -> bool:
        ring.check()
        return not asked.exists()

    wait_for(restarted, 20)
    await_restart(asked, 1.0)
    wait_for(lambda: len(pids(tmp_path / "logs" / "streams.log")) == 2, 20)
    assert len(pids(tmp_path / "logs" / "actor.log")) == 1
    assert ring.processes.restarts == {}
    assert requested(tmp_path) == []
    ring.processes.stop_all(5)
    lock.close()


def test_a_part_that_does_not_stop_is_killed_after_the_time_it_was_given(tmp_path: Path) -> None:
    clock = HandClock()
    ours = Processes(tmp_path, clock)
    ours.start_command("deaf", DEAF)
    wait_for(lambda: (tmp_path / "deaf.log").read_text().endswith("\n"), 20)
    ours.begin_restart("deaf", 30)
    assert (ours.check(), ours.restarting("deaf")) == ([], True)
    clock.now_s = 31
    wait_for(lambda: ours.check() == ["deaf was restarted on request"], 20)
    wait_for(lambda: len(pids(tmp_path / "deaf.log")) == 2, 20)
    assert not ours.restarting("deaf")
    ours.begin_restart("deaf", 0)
    ours.stop_all(0.1, 0.1)


def test_what_cannot_be_restarted_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no ring of this machine runs in"):
        request_restart(tmp_path, "actor")
    (tmp_path / "run.lock").write_text(str(os.getpid()))
    write_states(tmp_path, {"kafka": "runs", "actor": "runs", "learner": "waits for the actor"})
    with pytest.raises(ConfigError, match=r"acter is not a part of the ring in .*; its parts are actor, learner"):
        request_restart(tmp_path, "acter")
    with pytest.raises(ConfigError, match="learner waits for the actor: it has not been started yet"):
        request_restart(tmp_path, "learner")
    assert requested(tmp_path) == []


def test_a_ring_that_does_not_answer_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text(str(os.getpid()))
    write_states(tmp_path, {"actor": "runs"})
    asked, clock = request_restart(tmp_path, "actor"), HandClock()

    def pause(seconds: float) -> None:
        clock.now_s += seconds

    with pytest.raises(Unavailable, match="has not restarted actor within 10 s"):
        await_restart(asked, 10, clock, pause)
    assert requested(tmp_path) == [], "it is withdrawn"
