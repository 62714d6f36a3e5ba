"""Events wait on disk for a broker that is away, and go out in order when it is back."""

import os
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from streams.core.errors import InvalidEvent, Unavailable
from streams.core.events import Event, Feedback, FeedbackKind
from streams.core.metrics import Metrics
from streams.core.topics import FEEDBACK, Topic
from streams.kafka import RecordPlace
from streams.outbox.outbox import Outbox
from streams.outbox.outbox_settings import OutboxSettings
from streams.outbox.sqlite_spool import Spool, SpooledEvent


def refused() -> RecordPlace:
    raise InvalidEvent("too_large", "the topic takes less")


class Broker:
    """Stands for Kafka; can be away, or away in the middle of a batch."""

    def __init__(self) -> None:
        self.away = threading.Event()
        self.records: list[bytes] = []
        self.letters: list[Event] = []
        self.too_large = self.topic_takes = 10_000
        self.flushes = 0
        self._sent: list[bytes] = []

    def connect(self) -> "Broker":
        if self.away.is_set():
            raise Unavailable("away")
        return self

    def send_raw(self, topic: str, key: bytes | None, value: bytes, headers: Any = ()) -> Callable[[], RecordPlace]:
        if len(value) > self.too_large:
            raise InvalidEvent("too_large", "too large")
        if len(value) > self.topic_takes:
            return refused
        self._sent.append(value)
        return lambda: RecordPlace(topic, 0, 0)

    def send(self, topic: Topic[Any], event: Event) -> Callable[[], RecordPlace]:
        self.letters.append(event)
        return lambda: RecordPlace(topic.name, 0, 0)

    def flush(self) -> None:
        self.flushes += 1
        sent, self._sent = self._sent, []
        if self.away.is_set():
            raise Unavailable("away")
        self.records += sent

    def close(self, timeout_s: float = 10.0) -> None: ...


def thumb(number: int, text: str = "x") -> Feedback:
    return Feedback(feedback_id=f"fb-{number}", episode_id="ep", kind=FeedbackKind.COMMENT, text=text, at=datetime(2026, 1, 1, tzinfo=UTC))


def ids(broker: Broker) -> list[str]:
    return [Feedback.decode(value).feedback_id for value in broker.records]


def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def outboxes(tmp_path: Path, broker: Broker) -> Iterator[Callable[..., Outbox]]:
    made: list[Outbox] = []

    def make(metrics: Metrics | None = None, **settings: Any) -> Outbox:
        chosen = OutboxSettings.model_validate({f"outbox_{name}": value for name, value in settings.items()})
        made.append(Outbox(tmp_path / "outbox.sqlite", broker.connect, metrics or Metrics(), "actor", chosen))
        return made[-1]

    yield make
    for outbox in made:
        outbox.close(1)


def test_events_go_out_in_order(outboxes: Callable[..., Outbox], broker: Broker) -> None:
    outbox = outboxes()
    for number in range(50):
        assert outbox.put(FEEDBACK, thumb(number))
    assert outbox.wait_until_empty(60)
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
    assert second.wait_until_empty(60)
    assert ids(broker) == [f"fb-{number}" for number in range(21)]


def test_a_full_outbox_drops_and_counts_and_never_waits(outboxes: Callable[..., Outbox], broker: Broker) -> None:
    broker.away.set()
    metrics = Metrics()
    outbox = outboxes(metrics, events=3)
    assert [outbox.put(FEEDBACK, thumb(number)) for number in range(5)] == [True, True, True, False, False]
    assert metrics.value("tidemill_outbox_dropped_total", reason="full") == 2
    assert metrics.value("tidemill_outbox_depth") == 3


def test_an_event_too_large_for_kafka_becomes_a_dead_letter_and_holds_nothing_up(outboxes: Callable[..., Outbox], broker: Broker) -> None:
    outbox = outboxes()
    outbox.put(FEEDBACK, thumb(0))
    outbox.put(FEEDBACK, thumb(1, text="y" * 20_000))
    outbox.put(FEEDBACK, thumb(2))
    assert outbox.wait_until_empty(60)
    assert ids(broker) == ["fb-0", "fb-2"]
    assert [letter.model_dump()["reason"] for letter in broker.letters] == ["too_large"]


def test_an_event_too_large_for_its_topic_becomes_a_dead_letter_and_its_neighbours_are_sent_once(
    outboxes: Callable[..., Outbox], broker: Broker
) -> None:
    broker.topic_takes = 1000
    outbox = outboxes()
    for number in range(5):
        assert outbox.put(FEEDBACK, thumb(number))
    assert outbox.put(FEEDBACK, thumb(7, text="y" * 2000))
    assert outbox.put(FEEDBACK, thumb(8))
    assert outbox.wait_until_empty(10)
    assert len(broker.records) == len(set(broker.records)) == 6
    (letter,) = broker.letters
    assert letter.reason == "too_large"  # type: ignore[attr-defined]


def test_where_the_newest_matter_the_oldest_give_way_and_are_counted(outboxes: Callable[..., Outbox], broker: Broker) -> None:
    broker.away.set()
    metrics = Metrics()
    outbox = outboxes(metrics, events=3, when_full="keep_newest")
    for number in range(8):
        assert outbox.put(FEEDBACK, thumb(number))
        until(lambda: not outbox._fresh)
    until(lambda: metrics.value("tidemill_outbox_dropped_total", reason="full") == 5)
    assert outbox.depth == 3
    broker.away.clear()
    assert outbox.wait_until_empty(20)
    assert ids(broker) == ["fb-5", "fb-6", "fb-7"]


def test_a_disk_that_fills_after_events_were_written_does_not_make_them_be_written_again(
    outboxes: Callable[..., Outbox], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would meet their own rows, and nothing would ever be written after them."""
    broker.away.set()
    outbox = outboxes(events=3, when_full="keep_newest")
    drop, full = outbox._spool.drop_beyond, [True, True]

    def fails_twice(*limits: int) -> Any:
        if full:
            full.pop()
            raise Unavailable("the disk is full")
        return drop(*limits)

    monkeypatch.setattr(outbox._spool, "drop_beyond", fails_twice)
    for number in range(8):
        assert outbox.put(FEEDBACK, thumb(number))
        until(lambda: not outbox._fresh)
    until(lambda: outbox.depth == 3)
    broker.away.clear()
    assert outbox.wait_until_empty(20)
    assert ids(broker) == ["fb-5", "fb-6", "fb-7"]


@pytest.mark.parametrize("when_full", ["keep_oldest", "keep_newest"])
def test_an_outbox_is_bounded_by_bytes_too(outboxes: Callable[..., Outbox], broker: Broker, when_full: str) -> None:
    broker.away.set()
    metrics = Metrics()
    outbox = outboxes(metrics, mib=1, when_full=when_full)
    for number in range(40):
        outbox.put(FEEDBACK, thumb(number, "y" * 99_000))
        until(lambda: not outbox._fresh)
    until(lambda: metrics.value("tidemill_outbox_dropped_total", reason="full") == 40 - outbox.depth)
    assert 9 <= outbox.depth <= 11


def test_what_has_waited_too_long_is_dropped_and_counted(outboxes: Callable[..., Outbox], broker: Broker) -> None:
    broker.away.set()
    metrics = Metrics()
    outbox = outboxes(metrics, age_h=1e-6)
    outbox.put(FEEDBACK, thumb(0))
    until(lambda: metrics.value("tidemill_outbox_dropped_total", reason="old") == 1)
    assert outbox.depth == 0


def test_age_is_time_in_use_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", synced=False)
    spool._in_use_s += 100
    spool.append([SpooledEvent(1, FEEDBACK.name, b"k", b"v")])
    spool.close()
    again = Spool(tmp_path / "s", synced=False)
    assert again.in_use_s() >= 100
    assert again.drop_older(60).events == 0
    again._in_use_s += 61
    assert again.drop_older(60).events == 1


def test_a_disk_that_takes_no_more_is_waited_for_in_memory(outboxes: Callable[..., Outbox], broker: Broker) -> None:
    metrics = Metrics()
    outbox = outboxes(metrics, events=50)
    pages = outbox._spool._database.execute("PRAGMA page_count").fetchone()[0]
    outbox._spool._database.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(60):
        outbox.put(FEEDBACK, thumb(number, "y" * 9000))  # more than a page: not even the first fits
    assert metrics.value("tidemill_outbox_dropped_total", reason="full") == 10
    assert ids(broker) == []
    outbox._spool._database.execute("PRAGMA max_page_count = 100000")
    assert outbox.wait_until_empty(20)
    assert ids(broker) == [f"fb-{number}" for number in range(50)]


def test_where_each_is_synced_a_full_disk_refuses_and_a_kill_takes_nothing(outboxes: Callable[..., Outbox], broker: Broker, tmp_path: Path) -> None:
    broker.away.set()
    metrics = Metrics()
    outbox = outboxes(metrics, fsync="each")
    for number in range(5):
        assert outbox.put(FEEDBACK, thumb(number))
        assert waiting_after_a_kill(tmp_path, f"copy-{number}") == (number + 1, 0)
    outbox._spool._database.execute("PRAGMA max_page_count = 1")
    assert not outbox.put(FEEDBACK, thumb(5, "y" * 9000))
    assert metrics.value("tidemill_outbox_dropped_total", reason="disk") == 1
    assert waiting_after_a_kill(tmp_path, "copy-5") == (5, 0)


def test_where_each_is_synced_a_kill_before_the_write_is_no_loss_since_nothing_was_promised(
    outboxes: Callable[..., Outbox], broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.away.set()
    outbox, found = outboxes(Metrics(), fsync="each"), list[tuple[int, int]]()
    append = outbox._spool.append

    def killed_on_either_side(events: Sequence[SpooledEvent]) -> None:
        found.append(waiting_after_a_kill(tmp_path, "before"))
        append(events)
        found.append(waiting_after_a_kill(tmp_path, "after"))

    monkeypatch.setattr(outbox._spool, "append", killed_on_either_side)
    assert outbox.put(FEEDBACK, thumb(0))
    assert found == [(0, 0), (1, 0)]


def waiting_after_a_kill(folder: Path, name: str, torn_at: int | None = None) -> tuple[int, int]:
    """How many events a process finds that starts on the files as they lie now, and how many it says were lost."""
    copy = folder / name
    copy.mkdir()
    for file in folder.glob("outbox.sqlite*"):
        if not file.name.endswith("-shm"):
            shutil.copy(file, copy / file.name)
    if torn_at is not None:
        os.truncate(copy / "outbox.sqlite-wal", torn_at)
    spool = Spool(copy / "outbox.sqlite", synced=False)
    assert [row.id for row in spool.oldest(0, 1000, 1 << 20)] == list(range(1, spool.events + 1)), "what is left is a beginning, in order"
    found = spool.events, spool.lost
    spool.close()
    again = Spool(copy / "outbox.sqlite", synced=False)
    assert (again.events, again.lost) == (found[0], 0), "a loss is told once"
    again.close()
    return found


def test_at_whichever_byte_the_file_was_torn_a_beginning_is_left_and_the_rest_is_told(tmp_path: Path) -> None:
    spool, chance = Spool(tmp_path / "outbox.sqlite", synced=False), random.Random(5)
    for number in range(1, 31):
        spool.counters.note(accepted=number)
        spool.append([SpooledEvent(number, FEEDBACK.name, b"key", b"v" * chance.randint(1, 3000))])
    size = (tmp_path / "outbox.sqlite-wal").stat().st_size
    counts = set()
    for number in range(60):
        kept, lost = waiting_after_a_kill(tmp_path, f"copy-{number}", chance.randint(0, size))
        assert kept + lost == 30
        counts.add(kept)
    assert len(counts) > 10
    spool.close()


def test_a_damaged_file_is_put_aside_and_its_loss_is_told(outboxes: Callable[..., Outbox], broker: Broker, tmp_path: Path) -> None:
    broker.away.set()
    first = outboxes()
    for number in range(7):
        first.put(FEEDBACK, thumb(number))
    first.close(1)
    first._spool.close()
    (tmp_path / "outbox.sqlite").write_bytes(b"no database at all " * 1000)
    (tmp_path / "outbox.sqlite-wal").unlink(missing_ok=True)
    broker.away.clear()
    metrics = Metrics()
    second = outboxes(metrics)
    assert (second.lost, metrics.value("tidemill_outbox_lost_total")) == (7, 7)
    assert len(list(tmp_path.glob("*.damaged-*"))) >= 1
    second.put(FEEDBACK, thumb(7))
    assert second.wait_until_empty(20)
    assert ids(broker) == ["fb-7"]


def test_a_file_of_the_time_before_ages_is_read(outboxes: Callable[..., Outbox], broker: Broker, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "outbox.sqlite") as database:
        database.execute("CREATE TABLE spool (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, key BLOB, value BLOB)")
        database.execute("INSERT INTO spool (topic, key, value) VALUES (?, ?, ?)", (FEEDBACK.name, b"ep", thumb(0).encode()))
    database.close()
    outbox = outboxes()
    outbox.put(FEEDBACK, thumb(1))
    assert outbox.wait_until_empty(20)
    assert ids(broker) == ["fb-0", "fb-1"]
    assert outbox.lost == 0


def test_what_comes_within_the_linger_is_written_and_sent_together(outboxes: Callable[..., Outbox], broker: Broker) -> None:
    outbox = outboxes(linger_ms=1000)
    for number in range(20):
        outbox.put(FEEDBACK, thumb(number))
    assert outbox.wait_until_empty(60)
    assert ids(broker) == [f"fb-{number}" for number in range(20)]
    assert broker.flushes <= 3  # not one for each
