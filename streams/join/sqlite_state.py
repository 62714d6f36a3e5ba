"""The join's state on disk: one SQLite file per partition. State and offsets are committed in the same transaction.

The state is a cache of the log: a file that is lost, or belongs to another log, is rebuilt by folding the log from its beginning.
"""

import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import structlog

from streams.core.errors import Unavailable
from streams.join.episode_state import EpisodeState, decode_state, encode_known, encode_state

log = structlog.get_logger()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SCHEMA = """
CREATE TABLE IF NOT EXISTS standings (episode_id TEXT PRIMARY KEY, standing BLOB NOT NULL, waiting INTEGER NOT NULL, expires_ms INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS by_expiry ON standings (expires_ms);
CREATE INDEX IF NOT EXISTS by_waiting ON standings (waiting) WHERE waiting > 0;
CREATE TABLE IF NOT EXISTS episodes (episode_id TEXT PRIMARY KEY, known BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS places (topic TEXT PRIMARY KEY, next INTEGER NOT NULL, arrived_ms INTEGER NOT NULL);
"""


BOTH = "SELECT episode_id, CAST(standing AS BLOB), known FROM standings LEFT JOIN episodes USING (episode_id)"
"""Older versions wrote a state as text."""
WIPED = 1
"""``user_version`` of files that have never kept deleted bytes."""


class Reached(NamedTuple):
    """How far a topic has been folded: the next offset, and the arrival time of the last record (ms since 1970; 0 before the first)."""

    next: int = 0
    arrived_ms: int = 0


class PartitionState:
    """Satisfies EpisodeStates. A change is visible at once and durable after ``commit``. ``cached`` states stay in memory."""

    def __init__(self, path: Path, cached: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._cached = path, cached
        try:
            self._database = _open(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise Unavailable(f"cannot open {path}: {error}") from error
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            log.warning("the join's state is damaged and is rebuilt", path=str(path), error=str(error))
            self._database = _open(path)
        self._clean: dict[str, EpisodeState] = {}
        self._changed: dict[str, EpisodeState | None] = {}
        rows = self._database.execute("SELECT topic, next, arrived_ms FROM places")
        self.reached = {topic: Reached(offset, arrived_ms) for topic, offset, arrived_ms in rows}

    def get(self, episode_id: str, /) -> EpisodeState | None:
        if episode_id in self._changed:
            return self._changed[episode_id]
        if (standing := self._clean.get(episode_id)) is not None:
            return standing
        row = self._database.execute(f"{BOTH} WHERE episode_id = ?", (episode_id,)).fetchone()
        return None if row is None else decode_state(row[1], row[2])

    def __setitem__(self, episode_id: str, standing: EpisodeState, /) -> None:
        self._changed[episode_id] = standing

    def __delitem__(self, episode_id: str, /) -> None:
        self._changed[episode_id] = None

    def due(self, before: datetime) -> list[str]:
        """Episode ids whose ``expires_at`` is before that time. Changes that are not committed count: what was due before one may not be due now."""
        rows = self._database.execute("SELECT episode_id FROM standings WHERE expires_ms < ?", (_ms(before),))
        changed = [name for name, standing in self._changed.items() if standing is not None and _ms(standing.expires_at) < _ms(before)]
        return [episode_id for (episode_id,) in rows if episode_id not in self._changed] + changed

    def find_where(self, holds: Callable[[bytes], bool]) -> list[str]:
        """Episode ids whose committed state, as JSON bytes, satisfies ``holds``."""
        rows = self._database.execute(BOTH)
        return [episode_id for episode_id, standing, known in rows if holds(standing) or (known is not None and holds(known))]

    def wipe_log(self) -> None:
        """Remove deleted bytes from the disk: the database file overwrites them as it deletes (``secure_delete``), its write-ahead log keeps them
        until it is emptied."""
        try:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:
            raise Unavailable(f"cannot rewrite {self._path}: {error}") from error

    def waiting(self) -> int:
        """Number of committed feedback events that wait for their episode."""
        return int(self._database.execute("SELECT coalesce(sum(waiting), 0) FROM standings WHERE waiting > 0").fetchone()[0])

    def commit(self, reached: Mapping[str, Reached]) -> None:
        """Make state and offsets durable together. Raises Unavailable when another process has advanced this partition (fencing)."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            for topic, place in reached.items():
                before = self.reached.get(topic, Reached())
                self._database.execute("INSERT OR IGNORE INTO places VALUES (?, 0, 0)", (topic,))
                update = "UPDATE places SET next = ?, arrived_ms = ? WHERE topic = ? AND next = ?"
                if self._database.execute(update, (place.next, place.arrived_ms, topic, before.next)).rowcount != 1:
                    raise Unavailable(f"{self._path} is no longer at offset {before.next} of {topic}: another process joins this partition too")
            self._write()
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:  # a lock held by another; a full disk, where SQLite has already rolled back
            raise Unavailable(f"cannot write {self._path}: {error}") from error
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        self.reached = dict(reached)
        for episode_id, standing in self._changed.items():
            self._clean.pop(episode_id, None)
            if standing is not None:
                self._clean[episode_id] = standing
        self._changed.clear()
        for episode_id in list(self._clean)[: max(0, len(self._clean) - self._cached)]:
            del self._clean[episode_id]

    def clear(self) -> None:
        """Delete everything, because the file belongs to another log."""
        self._clean.clear()
        self._changed.clear()
        self.reached = {}
        self._database.executescript("BEGIN; DELETE FROM standings; DELETE FROM episodes; DELETE FROM places; COMMIT;")

    def close(self) -> None:
        self._database.close()

    def _write(self) -> None:
        kept = [(episode_id, standing) for episode_id, standing in self._changed.items() if standing is not None]
        self._database.executemany(
            "INSERT INTO standings VALUES (?, ?, ?, ?) ON CONFLICT (episode_id) DO UPDATE SET"
            " standing = excluded.standing, waiting = excluded.waiting, expires_ms = excluded.expires_ms",
            [
                (episode_id, encode_state(standing), 0 if standing.known is not None else len(standing.feedback), _ms(standing.expires_at))
                for episode_id, standing in kept
            ],
        )
        before = {episode_id: clean.known if (clean := self._clean.get(episode_id)) else None for episode_id, _ in kept}
        self._database.executemany(
            "INSERT OR REPLACE INTO episodes VALUES (?, ?)",
            [(episode_id, encode_known(now.known)) for episode_id, now in kept if now.known is not None and now.known is not before[episode_id]],
        )
        self._database.executemany(
            "DELETE FROM episodes WHERE episode_id = ?", [(name,) for name, now in self._changed.items() if now is None or now.known is None]
        )
        self._database.executemany("DELETE FROM standings WHERE episode_id = ?", [(name,) for name, now in self._changed.items() if now is None])


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=30)
    database.execute("PRAGMA journal_mode = WAL")
    # In WAL mode NORMAL loses nothing in a kill, and in a power cut at most the last commits together with their offsets.
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten at once; VACUUM would rewrite everything
    database.executescript(SCHEMA)
    if database.execute("PRAGMA user_version").fetchone()[0] < WIPED:
        database.execute("VACUUM")  # once: files from before may still hold deleted bytes
        database.execute(f"PRAGMA user_version = {WIPED}")
    return database


def _ms(time: datetime) -> int:
    return (time - EPOCH) // timedelta(milliseconds=1)
