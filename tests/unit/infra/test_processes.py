"""Parts are started again when they die, and nothing is left behind."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from infra.local import local_ring
from infra.local.core_plan import core_plan
from infra.local.local_ring import Ring, lock_run
from infra.local.part_states import parts_line, states_of
from infra.local.port_check import check_ports, ports_of
from infra.local.processes import LONGEST_PAUSE_S, QUIET_S, RESTARTS, DeathRecord, Processes
from infra.settings.config import Settings, load
from infra.settings.part_addresses import in_url, metrics_targets, parts
from streams.core.errors import ConfigError, Unavailable
from tests.support.running import wait_for

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")


class ClockOfTests:
    """Moved by hand, in seconds."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_part_that_keeps_dying_is_shown_as_failing_with_the_end_of_its_log_and_the_others_go_on(tmp_path: Path) -> None:
    clock = ClockOfTests()
    ours = Processes(tmp_path, clock)
    ours.start_command("steady", SLEEPER)
    ours.start_command("flaky", (sys.executable, "-c", "print('out of cheese'); raise SystemExit(3)"))
    said: list[str] = []

    def one_more_death() -> None:
        clock.now_s += LONGEST_PAUSE_S  # the pause is over
        ours.check()
        died = len(said)
        wait_for(lambda: (said.extend(ours.check()), len(said) > died)[1], 20)

    for _ in range(RESTARTS):
        one_more_death()
        assert ours.failing() == {}
    one_more_death()
    assert "out of cheese" in ours.failing()["flaky"]
    assert ours.states() == {"steady": "runs", "flaky": "keeps dying"}
    assert [sentence.split(" (")[0] for sentence in said[:RESTARTS]] == ["flaky died"] * RESTARTS
    assert "keeps dying" in said[-1]
    one_more_death()  # it is tried again for ever
    assert list(ours.failing()) == ["flaky"]
    assert ours.restarts == {"flaky": RESTARTS + 1}
    ours.stop_all(timeout_s=5)


def test_pauses_grow_up_to_a_bound_and_deaths_before_a_quiet_time_are_forgotten() -> None:
    deaths = DeathRecord()
    assert [deaths.died(lived_s=5.0, now_s=100.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert deaths.keeps_dying(lived_s=5.0)
    assert not deaths.keeps_dying(lived_s=QUIET_S)
    assert not deaths.due(159.0)
    assert deaths.due(160.0)
    deaths.started()
    assert not deaths.due(1e9)
    assert deaths.died(lived_s=QUIET_S, now_s=0.0) == 1
    assert (deaths.lately, deaths.in_all, deaths.keeps_dying(0.0)) == (1, 9, False)


class KafkaOfTests:
    """Stands where the embedded broker does; ``fails`` launches fail."""

    def __init__(self, fails: int = 0) -> None:
        self.alive, self.launches, self._fails, self.pid = False, 0, fails, None

    def running(self) -> bool:
        return self.alive

    def relaunch(self) -> None:
        self.launches += 1
        if self.launches <= self._fails:
            raise Unavailable("no room for a JVM")
        self.alive = True


def ring_with(kafka: KafkaOfTests, tmp_path: Path, said: list[str], keeps_going: bool) -> Ring:
    ring = Ring(Settings(run_folder=tmp_path), said.append, keeps_going)
    ring._broker = kafka  # type: ignore[assignment]
    return ring


def test_a_dead_kafka_is_started_again_after_a_pause_and_again_when_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, kafka, said = ClockOfTests(), KafkaOfTests(fails=6), list[str]()
    monkeypatch.setattr(local_ring.time, "monotonic", clock)
    ring = ring_with(kafka, tmp_path, said, keeps_going=True)
    ring.check()
    assert kafka.launches == 0, "not before the pause is over"
    assert states_of(tmp_path) == {}, "nobody holds the folder"
    lock = lock_run(tmp_path)
    assert states_of(tmp_path) == {"kafka": "died"}
    while not kafka.alive:
        clock.now_s += LONGEST_PAUSE_S
        ring.check()
        ring.check()
    assert kafka.launches == 7, "it is never given up"
    assert sum("answers go on" in sentence for sentence in said) == 7
    assert sum("no room for a JVM" in sentence for sentence in said) == 6
    ring.check()
    assert kafka.launches == 7
    assert states_of(tmp_path) == {"kafka": "keeps dying"}, "until it has lived for a while"
    clock.now_s += QUIET_S
    ring.check()
    assert states_of(tmp_path) == {"kafka": "runs"}
    assert parts_line({"kafka": "runs", "actor": "runs", "learner": "keeps dying"}) == "learner keeps dying; kafka, actor run"
    lock.close()


def test_a_ring_that_need_not_keep_going_ends_with_a_kafka_that_keeps_dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, kafka, said = ClockOfTests(), KafkaOfTests(fails=100), list[str]()
    monkeypatch.setattr(local_ring.time, "monotonic", clock)
    ring = ring_with(kafka, tmp_path, said, keeps_going=False)

    def check_on() -> None:
        while kafka.launches <= RESTARTS:
            clock.now_s += LONGEST_PAUSE_S
            ring.check()

    with pytest.raises(Unavailable, match=f"Kafka died {RESTARTS + 1} times"):
        check_on()


def test_a_ring_takes_no_other_rings_word_that_the_actor_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring, other = (Ring(Settings(run_folder=tmp_path / name), print) for name in ("ours", "theirs"))
    answers = iter([
        httpx.Response(200, json={"status": "ready", "missing": [], "run_id": other.settings.run_id}),
        httpx.Response(200, json={"status": "ready", "missing": []}),
        httpx.Response(200, json=["ready"]),
        httpx.Response(200, text="ready"),
        httpx.Response(503, json={"status": "waiting", "missing": ["engine"], "run_id": ring.settings.run_id}),
        httpx.Response(200, json={"status": "ready", "missing": [], "run_id": ring.settings.run_id}),
    ])  # fmt: skip
    monkeypatch.setattr(local_ring.httpx, "get", lambda *_, **__: next(answers))
    assert [ring.actor_ready() for _ in range(6)] == [False] * 5 + [True]


def test_every_port_that_is_taken_or_asked_for_twice_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as one, socket.socket() as other:
        for held in (one, other):
            held.bind(("127.0.0.1", 0))
            held.listen()
        actor, otlp = one.getsockname()[1], other.getsockname()[1]
        settings = load("laptop", (f"run_folder={tmp_path / 'run'}", f"actor.port={actor}", f"otlp.port={otlp}", "otlp.beside_ring=true",
                                   f"broker.port={actor}"), {})  # fmt: skip
        with pytest.raises(ConfigError) as refused, Ring(settings, print):
            pass
    assert f"actor.host:actor.port = 127.0.0.1:{actor} is in use" in str(refused.value)
    assert f"otlp.host:otlp.port = 127.0.0.1:{otlp} is in use" in str(refused.value)
    assert f"broker.port = 127.0.0.1:{actor} are one port" in str(refused.value)
    assert not (tmp_path / "run" / "broker").exists()


def test_the_ports_that_are_checked_are_those_of_the_parts_that_run() -> None:
    settings = load("laptop", ("metrics_port=9100", "promotion.mode=gated"), {})
    assert {one.setting: one.number for one in ports_of(settings)} == {
        "actor.host:actor.port": 8000,
        "metrics_port + 0 (streams)": 9100,
        "metrics_port + 1 (reward)": 9101,
        "metrics_port + 2 (learner)": 9102,
        "metrics_port + 3 (promoter)": 9103,
        "metrics_port + 6 (Ray)": 9106,
    }
    check_ports(load("laptop", ("actor.port=0",), {}))
    everywhere = load("laptop", ("metrics_port=9100", "metrics_host=0.0.0.0"), {})
    assert {one.host for one in ports_of(everywhere) if "metrics_port" in one.setting and "Ray" not in one.setting} == {"0.0.0.0"}


def test_scrape_targets_follow_the_address_that_metrics_listen_on() -> None:
    def targets(*overrides: str, host: str | None = None) -> dict[str, str]:
        return metrics_targets(load("laptop", ("metrics_port=9100", *overrides), {}), host)

    assert targets() == {"streams": "127.0.0.1:9100", "reward": "127.0.0.1:9101", "learner": "127.0.0.1:9102", "actor": "127.0.0.1:8000"}
    assert targets("metrics_host=10.0.0.7")["streams"] == "10.0.0.7:9100"
    assert targets("metrics_host=fd00::7")["streams"] == "[fd00::7]:9100"
    anywhere = ("metrics_host=0.0.0.0", "actor.host=0.0.0.0")
    assert targets(*anywhere)["learner"] == f"{socket.gethostname()}:9102"
    assert targets(*anywhere)["actor"] == f"{socket.gethostname()}:8000"
    assert set(targets(*anywhere, host="ring-1").values()) == {"ring-1:9100", "ring-1:9101", "ring-1:9102", "ring-1:8000"}
    assert in_url("0.0.0.0") == in_url("::") == "127.0.0.1", "for a client on this machine"


def test_stopping_a_part_ends_its_children_too(tmp_path: Path) -> None:
    ours = Processes(tmp_path)
    sleeper = "import time; time.sleep(60)"
    child = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', '{sleeper}']).pid, flush=True); {sleeper}"
    ours.start_command("parent", (sys.executable, "-c", child))
    log, deadline = tmp_path / "parent.log", time.monotonic() + 10
    while not log.read_text().endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.02)
    grandchild = int(log.read_text())
    assert psutil.pid_exists(grandchild)
    ours.stop_all(timeout_s=5)
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE


def test_a_part_that_hears_no_signal_is_killed_with_the_children_it_made_meanwhile(tmp_path: Path) -> None:
    """As one that loads a model in a library's own code."""
    ours = Processes(tmp_path)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    hears = f"""
import signal, subprocess, sys, time
def more(*_):
    print(subprocess.Popen([sys.executable, "-c", {deaf!r}]).pid, flush=True)
signal.signal(signal.SIGTERM, more)
print(subprocess.Popen([sys.executable, "-c", {deaf!r}]).pid, flush=True)
while True:
    time.sleep(600)
"""
    ours.start_command("deaf", (sys.executable, "-c", hears))
    log = tmp_path / "deaf.log"
    wait_for(lambda: log.read_text().endswith("\n"), 20)
    ours.stop_all(timeout_s=2, children_s=0.2)
    made = [int(pid) for pid in log.read_text().split()]
    assert len(made) == 2, "one before the stop, one because of it"
    assert [pid for pid in made if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("served", [False, True])
def test_only_a_ring_that_has_answered_somebody_gives_its_parts_time_to_finish(served: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring, waits = Ring(load("laptop", (f"run_folder={tmp_path}", "actor.drain_s=20", "actor.stop_delay_s=7"), {}), print), list[float]()
    monkeypatch.setattr(ring.processes, "stop", lambda *_, timeout_s, children_s=5.0: waits.append(timeout_s))
    if served:
        answer = httpx.Response(200, json={"status": "ready", "missing": [], "run_id": ring.settings.run_id})
        monkeypatch.setattr(local_ring.httpx, "get", lambda *_, **__: answer)
        assert ring.actor_ready()
    ring.stop()
    assert waits == ([local_ring.STOP_S + 27] * len(local_ring.STOP_ORDER) if served else [local_ring.HASTY_STOP_S])


def test_a_part_has_its_niceness_in_the_rings_own_session_where_it_counts(tmp_path: Path) -> None:
    started = Processes(tmp_path)
    started.start_command("nice", (sys.executable, "-c", "import os; print(os.getsid(0), os.getpgrp() == os.getpid(), os.nice(0))"), niceness=7)
    wait_for(lambda: (tmp_path / "nice.log").read_text().endswith("\n"), 20)
    assert (tmp_path / "nice.log").read_text().split() == [str(os.getsid(0)), "True", str(min(19, os.nice(0) + 7))]
    started.stop_all(timeout_s=5)


def test_people_come_first_and_waiting_threads_sleep() -> None:
    plan = core_plan(2, load("laptop", ("promotion.mode=gated", "reward.threads=1"), {}), {})
    assert plan["actor"].niceness == plan["streams"].niceness == plan["otlp"].niceness == 0
    assert all(plan[part].niceness > 0 for part in ("promoter", "reward", "critic", "learner"))
    assert {part: share.threads for part, share in plan.items() if share.threads > 1} == {"actor": 2, "learner": 2}
    assert all(share.environment["OMP_WAIT_POLICY"] == "passive" for share in plan.values())
    assert plan["reward"].environment["OMP_NUM_THREADS"] == "1"


def test_a_plan_keeps_to_what_is_set_and_to_what_the_operator_put_into_the_environment() -> None:
    settings = load("laptop", ("actor.cpu_threads=3", "learner.threads=5", "reward.threads=2"), {})
    plan = core_plan(8, settings, {"OMP_WAIT_POLICY": "active"})
    assert (plan["actor"].threads, plan["learner"].threads, plan["promoter"].threads, plan["streams"].threads) == (3, 5, 2, 1)
    assert "OMP_WAIT_POLICY" not in plan["actor"].environment
    assert core_plan(8, load("laptop", ("learner.workers=4",), {}), {})["learner"].threads == 2
    assert core_plan(8, load("laptop", ("learner.background=false",), {}), {})["learner"].niceness == 0


def test_a_part_without_a_share_would_be_seen() -> None:
    every_part = Settings.model_validate({"promotion": {"mode": "gated"}, "critic": {"rubric": ["It is short."]}, "otlp": {"beside_ring": True}})
    assert set(parts(every_part)) == set(core_plan(2, every_part))


def test_a_log_on_a_full_disk_ends_nobody(tmp_path: Path) -> None:
    written = "import resource, structlog\nfrom infra.local.part_logs import log_json\nlog_json('streams')\nstructlog.get_logger().info('before')\n"
    written += "resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))\n"
    written += "for _ in range(100):\n    structlog.get_logger().warning('x' * 100)\nprint('alive')\n"
    with (tmp_path / "log").open("wb") as log:
        root = Path(__file__).parents[3]
        done = subprocess.run([sys.executable, "-c", written], stderr=log, stdout=subprocess.PIPE, text=True, check=False, cwd=root)
    assert "before" in (tmp_path / "log").read_text()
    assert "alive" in done.stdout
