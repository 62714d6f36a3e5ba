"""The ledger that the streams keep beside the join: what it shows, and that reading only the last hours raises no false alarm."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.clock import FixedClock
from streams.core.events import Erased, Erasure, Feedback
from streams.core.part_context import PartContext
from streams.core.topics import DEAD_LETTERS, EPISODES, FEEDBACK, LABELS
from streams.join import ledger_watch
from streams.join.join_settings import JoinSettings
from streams.join.ledger import Ledger, Row, balance, ledger_entries
from streams.join.ledger_watch import count, oldest_open_s
from streams.kafka import KafkaSettings, Record
from tests.unit.streams.test_ledger import T0, Log, episode, thumb


def lately(log: Log, since: datetime) -> Ledger:
    """The ledger of what arrived since then, from records of since then alone."""
    since_ms = since.timestamp() * 1000

    def read(name: str) -> list[Record]:
        return [record for record in log.topics[name] if record.timestamp_ms >= since_ms]

    episodes, feedback = ledger_entries(read(EPISODES.name)), ledger_entries(read(FEEDBACK.name))
    return balance(episodes, feedback, read(LABELS.name), read(DEAD_LETTERS.name), log.passed, since)


def joined_at(log: Log, hours: float) -> None:
    """The join passes all that is there; what it writes arrives at this hour."""
    known = {topic.name: len(log.topics[topic.name]) for topic in (LABELS, DEAD_LETTERS)}
    log.joined()
    at_ms = int((T0 + timedelta(hours=hours)).timestamp() * 1000)
    for name, first in known.items():
        log.topics[name][first:] = [Record(r.topic, r.partition, r.offset, at_ms, r.key, r.value) for r in log.topics[name][first:]]


@given(st.lists(st.tuples(st.sampled_from(["episode", "thumb", "again", "bad"]), st.integers(0, 4)), max_size=25), st.floats(0, 25))
def test_reading_only_the_last_hours_finds_nothing_missing_where_nothing_is(steps: list[tuple[str, int]], since_h: float) -> None:
    log, given_before = Log(), list[tuple[float, Feedback]]()
    for hour, (kind, number) in enumerate(steps):
        if kind == "episode":
            log.publish(EPISODES, episode(f"ep-{number}"), hour)
        elif kind == "thumb":
            given_before.append((hour, thumb(f"fb-{hour}", f"ep-{number}")))
            log.publish(FEEDBACK, given_before[-1][1], hour)
        elif kind == "again" and given_before:
            log.publish(FEEDBACK, given_before[number % len(given_before)][1], hour)
        elif kind == "bad":
            log.publish(FEEDBACK, b"not json", hour)
        joined_at(log, hour)
    assert log.ledger().balanced
    assert lately(log, T0 + timedelta(hours=since_h)).missing == ()


def test_a_label_that_was_lost_lately_is_missing_and_one_that_was_lost_before_is_not_looked_for() -> None:
    log = Log()
    for hour in (1, 9):
        log.publish(EPISODES, episode(f"ep-{hour}"), hour)
        log.publish(FEEDBACK, thumb(f"fb-{hour}", f"ep-{hour}"), hour)
        joined_at(log, hour)
    log.topics[LABELS.name].clear()
    assert lately(log, T0 + timedelta(hours=5)).missing == ("fb-9",)
    assert lately(log, T0 + timedelta(hours=10)).missing == ()


def test_a_count_is_shown_as_metrics(tmp_path: Path) -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    context = PartContext(KafkaSettings(), ArtifactStore(str(tmp_path)), "default", tmp_path, tmp_path, clock=FixedClock(now))
    spans: list[datetime] = []

    def ledger(since: datetime) -> Ledger:
        spans.append(since)
        return Ledger((Row("e", 3, 3, 0, 0, 0, 0, ()), Row("f", 3, 1, 0, 0, 0, 0, ("fb-1", "fb-2"))))

    asked = Erasure.of("ann", "operator", now - timedelta(hours=30))
    count(JoinSettings(ledger_span_h=3), context, ledger, lambda: ([asked], []))
    value = context.metrics.value
    assert spans == [now - timedelta(hours=3)]
    assert (value("tidemill_ledger_missing_records", topic="e"), value("tidemill_ledger_missing_records", topic="f")) == (0, 2)
    assert value("tidemill_erasure_open_seconds") == 30 * 3600


def test_an_erasure_is_open_until_join_lake_and_learner_have_reported_it() -> None:
    old, new = (Erasure.of("ann", "operator", T0 + timedelta(hours=hour)) for hour in (0, 2))
    now = T0 + timedelta(hours=3)

    def report(erasure: Erasure, part: str) -> Erased:
        return Erased(person=erasure.person, part=part, where="x", removed={}, erasure_at=erasure.at, at=now)

    done = [report(old, part) for part in ("join", "lake", "learner")]
    assert oldest_open_s([], [], now) == 0
    assert oldest_open_s([old, new], done[:2], now) == 3 * 3600
    assert oldest_open_s([old, new], done, now) == 3600, "the second one is open"
    assert oldest_open_s([old], done, now) == 0


def test_a_large_log_is_counted_less_often_and_a_kafka_that_is_away_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    pauses: list[float] = []

    class Stopping:
        def wait(self, seconds: float) -> bool:
            pauses.append(seconds)
            return len(pauses) > 3

    def slow(*_: object) -> None:
        clock[0] += 100.0
        if len(pauses) == 2:
            raise ledger_watch.Unavailable("Kafka is away")

    monkeypatch.setattr(ledger_watch, "count", slow)
    monkeypatch.setattr(ledger_watch.time, "monotonic", lambda: clock[0])
    context = PartContext(KafkaSettings(), ArtifactStore(str(tmp_path)), "default", tmp_path, tmp_path, stopping=Stopping())  # type: ignore[arg-type]
    ledger_watch.run(JoinSettings(ledger_every_s=900), context)
    assert pauses == [60.0, 1900.0, 1900.0, 1900.0], "the first one soon; then 100 s of counting in 2000 s"
    ledger_watch.run(JoinSettings(ledger_every_s=0), context)
    assert len(pauses) == 4, "never"
