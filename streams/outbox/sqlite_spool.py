"""The outbox's file: events in order in SQLite (write-ahead log), and counters beside it that survive a kill.

An accepted event is counted in a memory-mapped page, which belongs to the kernel and so survives the process. Events that were counted and never
reached the file were lost in a kill: the next start knows how many.
"""

import mmap
import os
import sqlite3
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import structlog

from streams.core.errors import Unavailable
from streams.core.topics import BY_NAME

SCHEMA = """
CREATE TABLE IF NOT EXISTS spool (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, key BLOB, value BLOB, put_at_s REAL NOT NULL DEFAULT 0,
  trace TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS lived (seconds REAL NOT NULL);
INSERT INTO lived SELECT 0 WHERE NOT EXISTS (SELECT * FROM lived);
"""
BEYOND = 1 << 62
"""No outbox ever reaches this id: a file or a counter with a larger one is damaged."""
SHAPELESS = """
SELECT EXISTS (SELECT * FROM spool WHERE id < 1 OR typeof(topic) != 'text' OR typeof(key) != 'blob' OR typeof(value) != 'blob'
  OR typeof(put_at_s) != 'real' OR typeof(trace) != 'text') OR EXISTS (SELECT * FROM lived WHERE typeof(seconds) != 'real')
"""
SIZE = "length(value) + length(coalesce(key, ''))"
log = structlog.get_logger()


class SpooledEvent(NamedTuple):
    """One event on its way to Kafka. Ids grow by one with each accepted event."""

    id: int
    topic: str
    key: bytes
    value: bytes
    trace: str = ""
    """Its trace context. Empty when traces are off."""

    @property
    def bytes(self) -> int:
        return len(self.key) + len(self.value)


class Deleted(NamedTuple):
    """Number and size of deleted events."""

    events: int
    bytes: int


class Counters:
    """Three ids in a memory-mapped file: the last one accepted, the last one dropped before it was on disk, the last one that Kafka has."""

    def __init__(self, path: Path) -> None:
        self._lock = Lock()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._handle, 24)
        self._page = mmap.mmap(self._handle, 24)
        read = struct.unpack("<3Q", self._page)
        self.accepted, self.let_go, self.sent = read if max(read) < BEYOND else (0, 0, 0)

    def note(self, *, accepted: int = 0, let_go: int = 0, sent: int = 0) -> None:
        """Raise the given counters. They never fall."""
        with self._lock:
            self.accepted, self.let_go, self.sent = max(self.accepted, accepted), max(self.let_go, let_go), max(self.sent, sent)
            struct.pack_into("<3Q", self._page, 0, self.accepted, self.let_go, self.sent)

    def close(self) -> None:
        self._page.close()
        os.close(self._handle)


class Spool:
    """The file. Thread-safe. Every method raises Unavailable when the disk is full or the file cannot be used."""

    def __init__(self, path: Path, synced: bool) -> None:
        """``synced``: fsync every write before it returns."""
        self._path, self._lock = path, Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.counters = Counters(path.with_name(path.name + ".counters"))
        try:
            self._database, written = _open(path, synced)
            self.lost = max(0, self.counters.accepted - max(written, self.counters.let_go))
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise Unavailable(f"cannot open {path}: {error}") from error
            self.lost = max(0, self.counters.accepted - max(self.counters.sent, self.counters.let_go))
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            for suffix in ("", "-wal", "-shm"):
                if (part := Path(f"{path}{suffix}")).exists():
                    part.rename(f"{aside}{suffix}")
            log.error("the outbox's file is damaged and was moved aside", path=str(aside), error=str(error), lost_at_most=self.lost)
            self._database, written = _open(path, synced)
        if self.lost:
            log.error("the outbox was killed and lost events that were not yet on disk", lost=self.lost, accepted=self.counters.accepted)
        newest = max(written, self.counters.accepted)
        self.counters.note(accepted=newest, let_go=newest if self.lost else 0)
        self._in_use_s: float = self._database.execute("SELECT seconds FROM lived").fetchone()[0]
        self._opened_s = time.monotonic()
        self.events, self.bytes = self._database.execute(f"SELECT count(*), coalesce(sum({SIZE}), 0) FROM spool").fetchone()

    def in_use_s(self) -> float:
        """Seconds for which this file has been in use. An event's age is measured in this time."""
        return self._in_use_s + time.monotonic() - self._opened_s

    def append(self, events: Sequence[SpooledEvent]) -> None:
        """Append all of them or none."""
        at = self.in_use_s()
        with self._transaction():
            self._database.executemany(
                "INSERT INTO spool (id, topic, key, value, trace, put_at_s) VALUES (?, ?, ?, ?, ?, ?)", [(*event, at) for event in events]
            )
            self._database.execute("UPDATE lived SET seconds = ?", (at,))
        self._count(len(events), sum(event.bytes for event in events))

    def oldest(self, after: int, most: int, most_bytes: int) -> list[SpooledEvent]:
        """The oldest events after id ``after``: at most ``most``, and at most ``most_bytes`` unless a single one is larger."""
        found: list[SpooledEvent] = []
        size = 0
        with self._transaction():
            rows = self._database.execute("SELECT id, topic, key, value, trace FROM spool WHERE id > ? ORDER BY id LIMIT ?", (after, most))
            for row in rows:
                waiting = SpooledEvent(*row)
                size += waiting.bytes
                if found and size > most_bytes:
                    break
                found.append(waiting)
            rows.close()
        return found

    def delete_through(self, last: int) -> Deleted:
        """Delete all events up to and including that id."""
        with self._transaction():
            gone = self._delete(last)
        self._count(-gone.events, -gone.bytes)
        return gone

    def drop_beyond(self, events: int, size_bytes: int) -> Deleted:
        """Delete the oldest events until at most this many and this size are left."""
        before = Deleted(self.events, self.bytes)
        while (self.events > events or self.bytes > size_bytes) and (oldest := self.oldest(0, max(1, self.events - events), 1 << 20)):
            self.delete_through(oldest[-1].id)
        return Deleted(before.events - self.events, before.bytes - self.bytes)

    def drop_older(self, age_s: float) -> Deleted:
        """Delete events that have waited for longer."""
        before = self.in_use_s() - age_s
        with self._transaction():
            oldest = self._database.execute("SELECT put_at_s FROM spool ORDER BY id LIMIT 1").fetchone()
            if oldest is None or oldest[0] >= before:
                return Deleted(0, 0)
            gone = self._delete(self._database.execute("SELECT max(id) FROM spool WHERE put_at_s < ?", (before,)).fetchone()[0])
        self._count(-gone.events, -gone.bytes)
        return gone

    def close(self) -> None:
        with self._lock:
            self._database.close()
            self.counters.close()

    def _delete(self, last: int) -> Deleted:
        gone = Deleted(*self._database.execute(f"SELECT count(*), coalesce(sum({SIZE}), 0) FROM spool WHERE id <= ?", (last,)).fetchone())
        self._database.execute("DELETE FROM spool WHERE id <= ?", (last,))
        return gone

    def _count(self, events: int, size_bytes: int) -> None:
        """Update the totals, after the commit, so that failed writes do not count."""
        with self._lock:
            self.events += events
            self.bytes += size_bytes

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                with self._database:
                    yield
            except sqlite3.DatabaseError as error:
                raise Unavailable(f"cannot use {self._path}: {error}") from error


def _open(path: Path, synced: bool) -> tuple[sqlite3.Connection, int]:
    """Open the file. Also returns the last id that was ever written to it."""
    database = sqlite3.connect(path, timeout=30, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    # In WAL mode NORMAL syncs at checkpoints only: a power cut loses the newest writes and never damages the file.
    database.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
    columns = {name for _, name, *_ in database.execute("PRAGMA table_info(spool)")}
    if columns and "put_at_s" not in columns:
        database.execute("ALTER TABLE spool ADD COLUMN put_at_s REAL NOT NULL DEFAULT 0")
    if columns and "trace" not in columns:
        database.execute("ALTER TABLE spool ADD COLUMN trace TEXT NOT NULL DEFAULT ''")
    database.text_factory = lambda raw: raw.decode(errors="replace")
    database.executescript(SCHEMA)
    newest = database.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()[0]
    largest = database.execute("SELECT coalesce(max(id), 0) FROM spool").fetchone()[0]
    topics = {topic for (topic,) in database.execute("SELECT DISTINCT topic FROM spool")}
    shapeless = database.execute(SHAPELESS).fetchone()[0] or not isinstance(newest, int) or not largest <= newest < BEYOND
    if shapeless or not topics <= BY_NAME.keys():
        database.close()
        raise sqlite3.DatabaseError("it holds rows that no outbox wrote")  # sending would stop there for ever
    return database, newest
