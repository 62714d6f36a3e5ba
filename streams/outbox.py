"""A durable local spool between a part that must not wait and a Kafka that may be away.

``put`` only appends to memory. One thread moves events to a SQLite file (write-ahead log), another sends them from there in
order and deletes what Kafka has acknowledged. So an answer is never delayed, a broker away for minutes costs nothing, and
kill -9 loses at most the milliseconds between ``put`` and the spool. What was sent and not yet deleted is sent again after a
restart: events carry ids and their readers drop duplicates.
"""

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import structlog

from streams.clock import Clock, SystemClock
from streams.dead_letters import DeadLetters
from streams.errors import InvalidEvent, Unavailable
from streams.events import Event
from streams.kafka import Place, Publisher, Record
from streams.metrics import Metrics
from streams.topics import Topic

BATCH = 500
RETRY_S = 1.0
log = structlog.get_logger()


class RawPublisher(Publisher, Protocol):
    """A publisher that also takes bytes as they are."""

    def send_raw(self, topic: str, key: bytes | None, value: bytes) -> Callable[[], Place]: ...

    def close(self, timeout_s: float = 10.0) -> None: ...


class Outbox:
    """Takes events at once, keeps them on disk, sends them in order. Thread-safe."""

    def __init__(self, path: Path, connect: Callable[[], RawPublisher], metrics: Metrics, part: str, bound: int = 50_000,
                 clock: Clock | None = None) -> None:  # fmt: skip
        """``connect`` opens a producer (it may raise Unavailable, and is tried again); more than ``bound`` events waiting are dropped and counted."""
        self._path, self._connect, self._metrics, self._part, self._bound = path, connect, metrics, part, bound
        self._clock = clock or SystemClock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open(path) as database:
            database.execute("CREATE TABLE IF NOT EXISTS spool (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, key BLOB, value BLOB)")
            self._waiting: int = database.execute("SELECT count(*) FROM spool").fetchone()[0]
        self._fresh: deque[tuple[str, bytes, bytes]] = deque()
        self._lock = threading.Lock()
        self._spool_work, self._send_work, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._deadline = threading.Event()
        self._threads = [threading.Thread(target=self._spool, name="outbox-spool", daemon=True),
                         threading.Thread(target=self._send, name="outbox-send", daemon=True)]  # fmt: skip
        self._metrics.set("tidemill_outbox_depth", self._waiting)
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Events waiting to be acknowledged by Kafka."""
        return self._waiting

    def put(self, topic: Topic[Any], event: Event) -> bool:
        """Take an event without ever waiting. False when the outbox is full: the event was dropped and counted."""
        key, value = event.key.encode(), event.encode()
        with self._lock:
            if self._waiting >= self._bound:
                self._metrics.add("tidemill_capture_skipped_total", reason="outbox_full")
                return False
            self._waiting += 1
            self._fresh.append((topic.name, key, value))
        self._metrics.set("tidemill_outbox_depth", self._waiting)
        self._spool_work.set()
        return True

    def drained(self, timeout_s: float) -> bool:
        """Wait until nothing waits; False when the time is up."""
        waited = threading.Event()
        for _ in range(max(1, int(timeout_s / 0.02))):
            if self._waiting == 0:
                return True
            waited.wait(0.02)
        return self._waiting == 0

    def close(self, timeout_s: float = 5.0) -> None:
        """Put everything on disk, try to send it for so long, and stop. What is left is sent after the next start."""
        self._closing.set()
        self._spool_work.set()
        self._threads[0].join(timeout_s)
        self._send_work.set()
        self._threads[1].join(timeout_s)
        self._deadline.set()

    def _spool(self) -> None:
        """From memory to disk. A full disk leaves events in memory, within the bound, until there is room."""
        database = _open(self._path)
        while not (self._closing.is_set() and not self._fresh):
            self._spool_work.wait()
            self._spool_work.clear()
            batch = list(self._fresh)
            try:
                with database:
                    database.executemany("INSERT INTO spool (topic, key, value) VALUES (?, ?, ?)", batch)
            except sqlite3.OperationalError as error:
                log.warning("outbox cannot write its spool", path=str(self._path), error=str(error))
                if self._closing.wait(RETRY_S):
                    break
                self._spool_work.set()
                continue
            for _ in batch:
                self._fresh.popleft()
            self._send_work.set()
        database.close()

    def _send(self) -> None:
        """From disk to Kafka, oldest first; nothing overtakes what could not be sent."""
        database, producer = _open(self._path), None
        while not self._deadline.is_set():
            rows = database.execute("SELECT id, topic, key, value FROM spool ORDER BY id LIMIT ?", (BATCH,)).fetchall()
            if not rows:
                if self._closing.is_set() and not self._threads[0].is_alive():
                    break
                self._send_work.wait(0.5)
                self._send_work.clear()
                continue
            try:
                producer = producer or self._connect()
                self._send_rows(producer, rows)
            except Unavailable as error:
                log.warning("outbox waits for Kafka", waiting=self._waiting, error=str(error))
                if producer is not None:
                    producer.close(timeout_s=0)
                producer = None
                if self._closing.is_set():
                    break
                self._closing.wait(RETRY_S)
                continue
            with database:
                database.execute("DELETE FROM spool WHERE id <= ?", (rows[-1][0],))
            with self._lock:
                self._waiting -= len(rows)
            self._metrics.set("tidemill_outbox_depth", self._waiting)
        if producer is not None:
            producer.close()
        database.close()

    def _send_rows(self, producer: RawPublisher, rows: list[tuple[int, str, bytes, bytes]]) -> None:
        letters = DeadLetters(producer, self._clock, self._metrics, self._part)
        for _, topic, key, value in rows:
            try:
                producer.send_raw(topic, key, value)
            except InvalidEvent as error:
                letters.set_aside(Record(topic, -1, -1, int(self._clock.now().timestamp() * 1000), key, value), error)
        producer.flush()


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    return database
