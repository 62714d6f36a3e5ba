"""Features that outlive a restart: a file of features by the content that they were computed from (SQLite), and features that use it.

Nothing here names a person or an episode. An erasure empties the file, since nobody can tell from a hash whose words it stands for; what is still
needed is computed again.
"""

import hashlib
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import structlog
import torch
from torch import Tensor

from reward.features.featurizer import Features, Pair
from streams.core.chat_prompt import content_key as prompt_key

SCHEMA = "CREATE TABLE IF NOT EXISTS features (number INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB UNIQUE NOT NULL, row BLOB NOT NULL)"
AT_ONCE = 500
"""Keys in one query."""
log = structlog.get_logger()


class PartFeatures(Features, Protocol):
    """Features that can forget what they hold."""

    def clear_cache(self) -> None: ...


class FeatureStore:
    """Rows of features by key, at most ``most`` of them: the oldest leave first. A damaged file is begun anew, and what cannot be written is only
    computed again."""

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._most = path, most
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = _open(path)
        except sqlite3.DatabaseError as error:
            log.warning("the file of features cannot be read and is begun anew", path=str(path), error=str(error))
            for each in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
                each.unlink(missing_ok=True)
            self._database = _open(path)

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """The rows that are there: float32 ``[D]``."""
        found: dict[bytes, Tensor] = {}
        for begin in range(0, len(keys), AT_ONCE):
            some = keys[begin : begin + AT_ONCE]
            query = f"SELECT key, row FROM features WHERE key IN ({','.join('?' * len(some))})"
            try:
                found |= {
                    key: torch.from_numpy(np.frombuffer(row, dtype="<f4").astype(np.float32)) for key, row in self._database.execute(query, some)
                }
            except (sqlite3.DatabaseError, ValueError) as error:
                log.warning("stored features cannot be read and are computed again", path=str(self._path), error=str(error))
        return found

    def write(self, rows: Mapping[bytes, Tensor]) -> None:
        """Store rows."""
        try:
            with self._database:
                made = [(key, row_D.numpy().astype("<f4").tobytes()) for key, row_D in rows.items()]
                self._database.executemany("INSERT OR IGNORE INTO features (key, row) VALUES (?, ?)", made)
                self._database.execute("DELETE FROM features WHERE number <= (SELECT max(number) FROM features) - ?", (self._most,))
        except sqlite3.DatabaseError as error:
            log.warning("features cannot be stored", path=str(self._path), error=str(error))

    def clear(self) -> None:
        """Empty the file. Its pages are overwritten, not only marked free (``secure_delete``). Raises sqlite3.DatabaseError: an erasure must not seem
        to be done."""
        with self._database:
            self._database.execute("DELETE FROM features")
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        self._database.close()


class StoredFeatures:
    """Features kept by content: the ones used last in memory, more of them in a file where there is a store. Thread-safe."""

    def __init__(self, features: PartFeatures, in_memory: int, store: FeatureStore | None = None) -> None:
        self._features, self._in_memory, self._store = features, in_memory, store
        self.fingerprint, self.blocks = features.fingerprint, features.blocks
        self._cache: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = Lock()

    def features(self, pairs: Sequence[Pair]) -> Tensor:
        """Features of each pair: float32 ``[N, D]``. All that are not known yet are computed together."""
        keys = [content_key(self.fingerprint, pair) for pair in pairs]
        with self._lock:
            known = {key: self._cache[key] for key in keys if key in self._cache}
            if self._store is not None and (unknown := [key for key in dict.fromkeys(keys) if key not in known]):
                known |= self._store.read(unknown)
            missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
            if missing:
                made = dict(zip(missing, self._features.features(list(missing.values())), strict=True))
                known |= made
                if self._store is not None:
                    self._store.write(made)
            for key in keys:
                self._cache[key] = known[key]
                self._cache.move_to_end(key)
            while len(self._cache) > self._in_memory:
                self._cache.popitem(last=False)
        return torch.stack([known[key] for key in keys]) if keys else torch.empty(0, sum(size for size, _ in self.blocks))

    def clear_cache(self) -> None:
        """Forget everything, in memory and in the file: it is what people said, as numbers."""
        with self._lock:
            self._features.clear_cache()
            self._cache.clear()
            if self._store is not None:
                self._store.clear()


def content_key(fingerprint: str, pair: Pair) -> bytes:
    """SHA-256 of features' kind, messages and answer."""
    messages, answer = pair
    parts = [fingerprint, prompt_key(messages), answer]
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode(errors="replace")).digest()


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")  # a power cut loses the newest rows and damages nothing
    database.execute("PRAGMA secure_delete=ON")
    database.execute(SCHEMA)
    database.execute("SELECT key, row FROM features LIMIT 1").fetchone()
    return database
