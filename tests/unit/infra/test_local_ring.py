"""How a ring starts: side by side what can be, the actor before what competes with it, and nothing left behind when something fails."""

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from infra.local import kafka_jars, local_ring
from infra.local.local_ring import Ring
from infra.local.part_states import states_of
from infra.local.start_order import AFTER_ACTOR, AFTER_ACTOR_WAIT_S
from infra.machine.machine_choice import MachineChoice
from infra.preparation import engine_arguments
from infra.preparation.base_preparation import prepared_base
from infra.preparation.child_runs import ChildRun, run_child
from infra.preparation.preparations import Preparations
from infra.settings.config import Settings, load
from infra.settings.policy_settings import PolicySettings
from streams.core.errors import ConfigError, Unavailable
from tests.support.running import wait_for

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


class Interrupted(Exception):
    """What Ctrl-C becomes."""


def test_work_goes_on_side_by_side_and_steps_follow_in_the_callers_thread() -> None:
    preparations, both, order = Preparations(), threading.Barrier(2), list[str]()

    def follow() -> None:
        order.append(threading.current_thread().name)
        preparations.begin("third", lambda: order.append("third"))

    preparations.begin("first", lambda: print(both.wait(20)))  # neither ends without the other
    preparations.begin("second", lambda: print(both.wait(20)))
    preparations.then({"third"}, lambda: order.append("last"))
    preparations.then({"first", "second"}, follow)
    preparations.finish()
    assert order == [threading.current_thread().name, "third", "last"]
    assert preparations.took_s.keys() == {"first", "second", "third"}


def until_broken_off(preparations: Preparations, seen: list[str]) -> Callable[[], None]:
    def work() -> None:
        preparations.broken_off.wait()
        seen.append("broken off")

    return work


def test_the_first_failure_breaks_off_the_rest_and_is_the_one_that_is_raised() -> None:
    preparations, seen = Preparations(), list[str]()

    def fail() -> None:
        raise Unavailable("no line to Maven")

    preparations.begin("slow", until_broken_off(preparations, seen))
    preparations.begin("fails", fail)
    preparations.then({"fails"}, lambda: seen.append("a step after it"))
    with pytest.raises(Unavailable, match="no line to Maven"):
        preparations.finish()
    assert seen == ["broken off"]


def test_an_interruption_breaks_off_all_work() -> None:
    preparations, seen = Preparations(), list[str]()

    def interrupt() -> None:
        raise Interrupted

    preparations.begin("slow", until_broken_off(preparations, seen))
    with pytest.raises(Interrupted):
        preparations.finish(interrupt)
    assert seen == ["broken off"]


def test_a_child_that_is_broken_off_or_takes_too_long_is_gone() -> None:
    broken_off = threading.Event()
    broken_off.set()
    for event, limit_s, reason in ((broken_off, 60.0, "was stopped"), (threading.Event(), 0.1, "took longer than 0 s")):
        with pytest.raises(Unavailable, match=reason):
            run_child(SLEEP, os.environ, event, limit_s)
        assert not children()


def test_what_a_child_prints_and_how_it_ended_is_told() -> None:
    done = run_child(
        (sys.executable, "-c", "import sys; print('out'); print('a\\nwhy', file=sys.stderr); sys.exit(3)"), os.environ, threading.Event()
    )
    assert (done.status, done.out, done.last_line) == (3, "out\n", "why")


def children() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE and "sleep(60)" in str(child.cmdline())
    ]


class BrokerOfTests:
    """Stands where the embedded broker does; notes what is asked of it."""

    def __init__(self, events: list[str], fails: str | None = None) -> None:
        self._events, self._fails, self.bootstrap_servers, self.pid = events, fails, "127.0.0.1:1", None

    def __getattr__(self, name: str) -> Callable[[], bool]:
        def noted(*_: object) -> bool:
            self._events.append(f"kafka {name}")
            if name == self._fails:
                raise Unavailable(f"Kafka cannot {name}")
            return True

        return noted


class StartOfTests:
    """A ring whose Kafka, base, measurement and parts are pretended; ``events`` is the order of what happened."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka_fails: str | None = None, overrides: tuple[str, ...] = ()) -> None:
        self.events: list[str] = []
        self.said: list[str] = []
        self.ready = False
        settings = load("laptop", (f"run_folder={tmp_path / 'run'}", "actor.port=0", *overrides), {})
        self.ring = Ring(settings, self.said.append, keeps_going=True, meanwhile=self._look)
        self.meanwhile: Callable[[], None] = lambda: None
        monkeypatch.setattr(local_ring, "Broker", lambda *_, **__: BrokerOfTests(self.events, kafka_fails))
        monkeypatch.setattr(local_ring, "check_memory", lambda *_: ())  # what is free here is not the point
        monkeypatch.setattr(local_ring, "create_topics", lambda _: self.events.append("topics"))
        monkeypatch.setattr(local_ring, "resolved", lambda settings, broken_off: MachineChoice(settings, ("measured",)))
        monkeypatch.setattr(local_ring, "prepared_base", lambda _, broken_off: self.make_base(broken_off))
        monkeypatch.setattr(self.ring.processes, "start", self._start)
        monkeypatch.setattr(self.ring, "actor_ready", lambda: self.ready)
        self.make_base: Callable[[threading.Event], Path] = lambda _: tmp_path / "base"

    def _look(self) -> None:
        self.meanwhile()

    def _start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], niceness: int) -> None:
        config = Path(arguments[-1])
        assert config.exists()
        self.events.append(name)

    @property
    def parts(self) -> list[str]:
        return [event for event in self.events if event in ("actor", "streams", "otlp", *AFTER_ACTOR)]


def test_the_actor_comes_first_and_what_learns_waits_until_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = StartOfTests(tmp_path, monkeypatch, overrides=("promotion.mode=gated", "otlp.beside_ring=true"))
    with start.ring:
        assert start.parts[0] == "actor" or "topics" in start.events[: start.events.index("actor")]
        assert set(start.parts) == {"actor", "streams", "otlp"}
        start.ring.check()
        assert set(start.parts) == {"actor", "streams", "otlp"}, "it is not ready yet"
        assert states_of(tmp_path / "run")["learner"] == "waits for the actor"
        start.ready = True
        start.ring.check()
        start.ring.check()
        assert start.parts[3:] == ["reward", "learner", "promoter"], "once"
        assert "learner" not in states_of(tmp_path / "run")
        assert any("the actor is ready after" in line for line in start.said)
    settings = Settings.model_validate(start.ring.settings.model_dump())
    assert settings.policy.base == tmp_path / "base"


def test_the_actor_does_not_wait_for_kafka(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = StartOfTests(tmp_path, monkeypatch)
    monkeypatch.setattr(local_ring, "create_topics", lambda _: wait_for(lambda: "actor" in start.events, 20))
    with start.ring:
        assert set(start.parts) == {"actor", "streams"}


def test_what_waits_for_the_actor_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = StartOfTests(tmp_path, monkeypatch)
    with start.ring:
        start.ring._actor_started_s -= AFTER_ACTOR_WAIT_S + 1
        start.ring.check()
        assert {"reward", "learner"} <= set(start.parts)


def test_what_waits_starts_when_the_actor_keeps_dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = StartOfTests(tmp_path, monkeypatch)
    with start.ring:
        monkeypatch.setattr(start.ring.processes, "failing", lambda: {"actor": "actor died 4 times"})
        start.ring.check()
        assert {"reward", "learner"} <= set(start.parts)


@pytest.mark.parametrize("what", ["prepare", "await_ready"])
def test_a_kafka_that_fails_ends_the_start_with_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    start = StartOfTests(tmp_path, monkeypatch, kafka_fails=what)
    with pytest.raises(Unavailable, match=f"Kafka cannot {what}"), start.ring:
        pass
    assert "streams" not in start.events
    assert start.events[-1] == "kafka stop"


def test_a_base_that_fails_ends_the_start_and_stops_kafka(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = StartOfTests(tmp_path, monkeypatch)

    def fail(broken_off: threading.Event) -> Path:
        raise Unavailable("the base smollm2 cannot be made: no room")

    start.make_base = fail
    with pytest.raises(Unavailable, match="no room"), start.ring:
        pass
    assert start.parts == []
    assert start.events[-1] == "kafka stop"


def test_an_argument_that_vllm_refuses_ends_the_start_before_any_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = StartOfTests(tmp_path, monkeypatch, overrides=("actor.vllm_args=--tensr-parallel-size=2",))
    refusal = "actor.vllm_args: vLLM refuses them: unrecognized arguments: --tensr-parallel-size=2"
    monkeypatch.setattr(engine_arguments, "run_child", lambda *_: ChildRun(1, "", f"a warning\n{refusal}\n"))
    with pytest.raises(ConfigError, match=refusal), start.ring:
        pass
    assert start.parts == []


def test_an_interrupted_start_leaves_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = StartOfTests(tmp_path, monkeypatch)

    def slow(broken_off: threading.Event) -> Path:
        return Path(run_child(SLEEP, os.environ, broken_off).out)

    def interrupt() -> None:
        if children():
            raise Interrupted

    start.make_base, start.meanwhile = slow, interrupt
    with pytest.raises(Interrupted), start.ring:
        pass
    assert not children()
    assert start.parts == []
    assert start.events[-1] == "kafka stop"


def test_a_base_that_cannot_be_made_is_told_with_the_childs_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Unavailable, match=r"the base tiny cannot be made: .*Not a directory"):
        prepared_base(PolicySettings(base="tiny"), threading.Event())


def test_jars_that_cannot_be_fetched_are_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_jars.sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match=r"cannot fetch Apache Kafka .* set kafka.bootstrap_servers"):
        kafka_jars.kafka_jars(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fetching_that_is_broken_off_leaves_nothing_behind(tmp_path: Path) -> None:
    broken_off = threading.Event()
    broken_off.set()
    with pytest.raises(Unavailable, match="was stopped"):
        kafka_jars.kafka_jars(tmp_path, broken_off=broken_off)
    assert list(tmp_path.iterdir()) == []


def test_adapters_that_every_replica_would_refuse_are_refused_before_anything_starts(tmp_path: Path) -> None:
    overrides = (f"run_folder={tmp_path / 'run'}", "policy.base=tiny", "actor.port=0", "learner.expert_rank=32")
    with pytest.raises(ConfigError, match=r"learner.rank = 32 is above actor.max_rank = 16"):
        Ring(load(None, overrides, {}), print).start()
