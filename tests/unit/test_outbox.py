"""Events wait on disk for a broker that is away, and go out in order when it is back."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from streams.errors import InvalidEvent, Unavailable
from streams.events import Event, Feedback, FeedbackKind
from streams.kafka import Place
from streams.metrics import Metrics
from streams.outbox import Outbox
from streams.topics import FEEDBACK, Topic


class Broker:
    """Stands for Kafka; can be away, or away in the middle of a batch."""

    def __init__(self) -> None:
        self.away = threading.Event()
        self.records: list[bytes] = []
        self.letters: list[Event] = []
        self.too_large = 10_000
        self._sent: list[bytes] = []

    def connect(self) -> "Broker":
        if self.away.is_set():
            raise Unavailable("away")
        return self

    def send_raw(self, topic: str, key: bytes | None, value: bytes) -> Callable[[], Place]:
        if len(value) > self.too_large:
            raise InvalidEvent("too_large", "too large")
        self._sent.append(value)
        return lambda: Place(topic, 0, 0)

    def send(self, topic: Topic[Any], event: Event) -> Callable[[], Place]:
        self.letters.append(event)
        return lambda: Place(topic.name, 0, 0)

    def flush(self) -> None:
        sent, self._sent = self._sent, []
        if self.away.is_set():
            raise Unavailable("away")
        self.records += sent

    def close(self, timeout_s: float = 10.0) -> None: ...


def thumb(number: int, text: str = "x") -> Feedback:
    return Feedback(feedback_id=f"fb-{number}", episode_id="ep", kind=FeedbackKind.COMMENT, text=text, at=datetime(2026, 1, 1, tzinfo=UTC))


def ids(broker: Broker) -> list[str]:
    return [Feedback.decode(value).feedback_id for value in broker.records]


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def outboxes(tmp_path: Path, broker: Broker) -> Iterator[Callable[..., Outbox]]:
    made: list[Outbox] = []

    def make(bound: int = 100, metrics: Metrics | None = None) -> Outbox:
        made.append(Outbox(tmp_path / "outbox.sqlite", broker.connect, metrics or Metrics(), "actor", bound))
        return made[-1]

    yield make
    for outbox in made:
        outbox.close(1)


def test_events_go_out_in_order(outboxes: Callable[..., Outbox], broker: Broker) -> None:
    outbox = outboxes()
    for number in range(50):
        assert outbox.put(FEEDBACK, thumb(number))
    assert outbox.drained(5)
    assert ids(broker) == [f"fb-{number}" for number in range(50)]


def test_what_waits_survives_a_restart_and_keeps_its_order(outboxes: Callable[..., Outbox], broker: Broker) -> None:
    broker.away.set()
    first = outboxes()
    for number in range(20):
        first.put(FEEDBACK, thumb(number))
    first.close(1)
    assert broker.records == []
    broker.away.clear()
    second = outboxes()
    second.put(FEEDBACK, thumb(20))
    assert second.drained(5)
    assert ids(broker) == [f"fb-{number}" for number in range(21)]


def test_a_full_outbox_drops_and_counts_and_never_waits(outboxes: Callable[..., Outbox], broker: Broker) -> None:
    broker.away.set()
    metrics = Metrics()
    outbox = outboxes(bound=3, metrics=metrics)
    began = time.monotonic()
    assert [outbox.put(FEEDBACK, thumb(number)) for number in range(5)] == [True, True, True, False, False]
    assert time.monotonic() - began < 1
    assert metrics.value("tidemill_capture_skipped_total", reason="outbox_full") == 2
    assert metrics.value("tidemill_outbox_depth") == 3


def test_an_event_too_large_for_kafka_becomes_a_dead_letter_and_holds_nothing_up(outboxes: Callable[..., Outbox], broker: Broker) -> None:
    outbox = outboxes()
    outbox.put(FEEDBACK, thumb(0))
    outbox.put(FEEDBACK, thumb(1, text="y" * 20_000))
    outbox.put(FEEDBACK, thumb(2))
    assert outbox.drained(5)
    assert ids(broker) == ["fb-0", "fb-2"]
    assert [letter.model_dump()["reason"] for letter in broker.letters] == ["too_large"]
