"""The outbox: a durable local queue between a part that must not wait and a Kafka that may be unavailable.

``put`` only appends to memory (unless ``outbox_fsync`` is ``each``). One thread moves events to a SQLite file; another sends them from there in
order and deletes what Kafka has acknowledged. So no answer is delayed, and a broker that is down for minutes loses nothing. Events that a kill
lost from memory are counted by the next start, and so is everything dropped for lack of room. Events that were sent and not yet deleted are sent
again after a restart: events carry ids and their readers drop duplicates.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog

from streams.core.clock import Clock, SystemClock
from streams.core.errors import InvalidEvent, Unavailable
from streams.core.events import Event
from streams.core.metrics import Metrics
from streams.core.topics import Topic
from streams.core.traces import Headers, context_as_text, context_from_header
from streams.kafka import Publisher, Record, RecordPlace
from streams.kafka.dead_letters import DeadLetters
from streams.outbox.outbox_settings import OutboxSettings
from streams.outbox.sqlite_spool import Deleted, Spool, SpooledEvent

BATCH_EVENTS = 500
BATCH_BYTES = 8 << 20
RETRY_S = 1.0
log = structlog.get_logger()


class RawPublisher(Publisher, Protocol):
    """A publisher that also sends encoded bytes."""

    def send_raw(self, topic: str, key: bytes | None, value: bytes, headers: Headers = ()) -> Callable[[], RecordPlace]: ...

    def close(self, timeout_s: float = 10.0) -> None: ...


class Outbox:
    """Accepts events at once, keeps them on disk, sends them in order. Thread-safe."""

    def __init__(self, path: Path, connect: Callable[[], RawPublisher], metrics: Metrics, part: str, settings: OutboxSettings | None = None,
                 clock: Clock | None = None) -> None:  # fmt: skip
        """``connect`` opens a producer. It may raise Unavailable; then it is called again later."""
        self._connect, self._metrics, self._part = connect, metrics, part
        self._settings, self._clock = settings or OutboxSettings(), clock or SystemClock()
        self._most_bytes = self._settings.outbox_mib << 20
        self._spool = Spool(path, synced=self._settings.outbox_fsync != "off")
        self._fresh: deque[SpooledEvent] = deque()  # in memory alone; in the order of ids
        self._waiting, self._waiting_bytes = self._spool.events, self._spool.bytes  # in memory and on disk
        self._producer: RawPublisher | None = None
        self._sent = 0  # acknowledged up to this id, whether or not it could be deleted yet
        self._lock = threading.RLock()
        self._spool_work, self._send_work = threading.Event(), threading.Event()
        self._closing, self._deadline = threading.Event(), threading.Event()
        if self._spool.lost:
            metrics.add("tidemill_outbox_lost_total", self._spool.lost)
        self._report_depth()
        self._threads = self._start()

    @property
    def depth(self) -> int:
        """Events that Kafka has not yet acknowledged."""
        return self._waiting

    @property
    def lost(self) -> int:
        """Events that were accepted before this start and lost in a kill."""
        return self._spool.lost

    @property
    def has_room(self) -> bool:
        """False while ``put`` would drop what it is given."""
        return self._has_room()

    def put(self, topic: Topic[Any], event: Event, headers: Headers = ()) -> bool:
        """Accept an event. Never waits, unless every event is synced. False when it was dropped; that is counted."""
        key, value = event.key.encode(), event.encode()
        with self._lock:
            if not self._has_room():
                self._metrics.add("tidemill_outbox_dropped_total", reason="full")
                return False
            waiting = SpooledEvent(self._spool.counters.accepted + 1, topic.name, key, value, context_as_text(headers))
            if self._settings.outbox_fsync == "each":  # accepted once it is on disk: a kill before that takes nothing that the caller was promised
                if not self._write([waiting]):
                    self._metrics.add("tidemill_outbox_dropped_total", reason="disk")
                    return False
                self._spool.counters.note(accepted=waiting.id)
                self._send_work.set()
            else:
                self._spool.counters.note(accepted=waiting.id)
                self._fresh.append(waiting)
                if not self._spool_work.is_set():  # waking a thread costs more than all of the above
                    self._spool_work.set()
            self._waiting += 1
            self._waiting_bytes += waiting.bytes
        self._report_depth()
        return True

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until the outbox is empty. False when the time is up first."""
        waited = threading.Event()
        for _ in range(max(1, int(timeout_s / 0.02))):
            if self.depth == 0:
                return True
            waited.wait(0.02)
        return self.depth == 0

    def close(self, timeout_s: float = 5.0) -> None:
        """Write everything to disk, send for at most ``timeout_s``, and stop. The rest is sent after the next start."""
        self._closing.set()
        for thread, work in zip(self._threads, (self._spool_work, self._send_work), strict=False):
            work.set()
            thread.join(timeout_s)
        self._deadline.set()

    def _start(self) -> Sequence[threading.Thread]:
        threads = [threading.Thread(target=target, name=f"outbox-{name}", daemon=True) for name, target in
                   (("spool", self._run_spool), ("send", self._run_send))]  # fmt: skip
        for thread in threads:
            thread.start()
        return threads

    def _run_spool(self) -> None:
        while not (self._closing.is_set() and not self._fresh):
            self._spool_work.wait()
            self._gather()
            self._spool_work.clear()
            if self._spool_fresh():
                self._send_work.set()
            elif self._closing.wait(RETRY_S):
                break
            else:
                self._spool_work.set()

    def _run_send(self) -> None:
        while not self._deadline.is_set():
            if not self._send_oldest():
                if self._closing.is_set():
                    break
                self._closing.wait(RETRY_S)
            elif not self._spool.events:
                if self._closing.is_set() and not self._threads[0].is_alive():
                    break
                if self._send_work.wait(0.5):
                    self._gather()
                self._send_work.clear()
        if self._producer is not None:
            self._producer.close()

    def _gather(self) -> None:
        """Wait for more events: a batch costs about as much as one event, and this process also has answers to serve."""
        self._closing.wait(self._settings.outbox_linger_ms / 1000)

    def _spool_fresh(self) -> bool:
        """Move events from memory to disk. With a full disk they stay in memory, within the limits, until there is room."""
        with self._lock:
            batch = list(self._fresh)
        if batch and not self._write(batch):
            return False
        with self._lock:
            for _ in batch:
                self._fresh.popleft()
        return True

    def _write(self, batch: Sequence[SpooledEvent]) -> bool:
        try:
            self._spool.append(batch)
        except Unavailable as error:
            log.warning("the outbox cannot write to its disk", error=str(error))
            return False
        if self._settings.outbox_when_full == "keep_newest":
            try:
                self._count_removed(self._spool.drop_beyond(self._settings.outbox_events, self._most_bytes), "full")
            except Unavailable as error:  # the batch is written all the same; the next one tries again
                log.warning("the outbox cannot delete from its disk", error=str(error))
        return True

    def _send_oldest(self) -> bool:
        """Send one batch from disk to Kafka, oldest first; nothing overtakes an event that could not be sent. False: try again later."""
        try:
            self._count_removed(self._spool.drop_older(self._settings.outbox_age_h * 3600), "old")
            if rows := self._spool.oldest(self._sent, BATCH_EVENTS, BATCH_BYTES):
                self._producer = self._producer or self._connect()
                self._publish(self._producer, rows)
                self._sent = rows[-1].id
                self._spool.counters.note(sent=self._sent)
            self._count_removed(self._spool.delete_through(self._sent))
        except Unavailable as error:
            log.warning("the outbox waits for Kafka", waiting=self.depth, error=str(error))
            if self._producer is not None:
                self._producer.close(timeout_s=0)
            self._producer = None
            return False
        finally:
            self._report_depth()
        return True

    def _publish(self, producer: RawPublisher, rows: Sequence[SpooledEvent]) -> None:
        """Send them, each once. One that its topic refuses becomes a dead letter, and holds up none of its neighbours."""
        letters = DeadLetters(producer, self._clock, self._metrics, self._part)
        sent: list[tuple[SpooledEvent, Callable[[], RecordPlace]]] = []
        refused: list[tuple[SpooledEvent, InvalidEvent]] = []
        for row in rows:
            try:
                sent.append((row, producer.send_raw(row.topic, row.key, row.value, context_from_header(row.trace))))
            except InvalidEvent as error:
                refused.append((row, error))
        producer.flush()
        for row, acknowledged in sent:
            try:
                acknowledged()
            except InvalidEvent as error:
                refused.append((row, error))
        for row, why in refused:
            letters.set_aside(Record(row.topic, -1, -1, int(self._clock.now().timestamp() * 1000), row.key, row.value), why)
        if refused:
            producer.flush()

    def _has_room(self) -> bool:
        """With ``keep_newest`` writing deletes the oldest on disk; while the disk cannot be written, memory may hold as many as the disk."""
        if self._settings.outbox_when_full == "keep_newest":
            return len(self._fresh) < self._settings.outbox_events and self._waiting_bytes - self._spool.bytes < self._most_bytes
        return self._waiting < self._settings.outbox_events and self._waiting_bytes < self._most_bytes

    def _count_removed(self, gone: Deleted, reason: str | None = None) -> None:
        """Count events that were deleted from disk. ``reason``: why they were dropped, if they were."""
        with self._lock:
            self._waiting -= gone.events
            self._waiting_bytes -= gone.bytes
        if reason and gone.events:
            self._metrics.add("tidemill_outbox_dropped_total", gone.events, reason=reason)

    def _report_depth(self) -> None:
        self._metrics.set("tidemill_outbox_depth", self._waiting)
