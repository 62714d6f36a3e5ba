"""One rule for a record that makes a part fail, wherever it does: the record is set aside with its reason, and the part goes on.

Two kinds. A step that raises: ``blamed_on_record`` makes an InvalidEvent of it. A step that ends the whole process (memory, native code): the page of
``RecordInHand`` outlives the process, and a record that was in hand at two deaths is set aside unread.
"""

import mmap
import sqlite3
import struct
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streams.core.errors import InvalidEvent, TidemillError, Unavailable

NOT_ITS_FAULT = (TidemillError, OSError, MemoryError, sqlite3.Error)
"""What dependencies and the machine do, not a record."""
DEATHS = 2
"""A record that was in hand at so many deaths of the part is set aside."""
SLOT = struct.Struct("<IiqI")  # CRC-32 of the topic, partition, offset, deaths
SLOTS = 32
"""The first is the record in hand; the others are those that were in hand at a death, newest first."""
EMPTY = (0, 0, 0, 0)
Slot = tuple[int, int, int, int]


@contextmanager
def blamed_on_record(step: str) -> Iterator[None]:
    """Whatever fails inside is the record's fault: raises InvalidEvent (``unusable``) with the step, the error's type and its place in the code.

    The error's own words are left out, since they may hold what a person said.
    """
    try:
        yield
    except NOT_ITS_FAULT:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        raise InvalidEvent("unusable", f"{step} failed with {type(error).__name__} at {place}") from error


class RecordInHand:
    """Remembers across the part's deaths which record it was working on. One file a partition; a few bytes written in memory for each record."""

    def __init__(self, path: Path) -> None:
        """Counts a death where the last process left a record in hand. Raises Unavailable when the file cannot be made."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a+b") as file:
                file.truncate(SLOT.size * SLOTS)
                self._page = mmap.mmap(file.fileno(), SLOT.size * SLOTS)
        except OSError as error:
            raise Unavailable(f"cannot open {path}: {error}") from error
        self._blamed = [slot for number in range(1, SLOTS) if (slot := self._read(number)) != EMPTY]
        if (found := self._read(0)) != EMPTY:
            deaths = 1 + next((slot[3] for slot in self._blamed if slot[:3] == found[:3]), 0)
            others = [slot for slot in self._blamed if slot[:3] != found[:3]]
            self._blamed = [(*found[:3], deaths), *others][: SLOTS - 1]
            for number in range(1, SLOTS):
                self._write(number, self._blamed[number - 1] if number <= len(self._blamed) else EMPTY)
        self._write(0, EMPTY)

    @contextmanager
    def working_on(self, topic: str, partition: int, offset: int, part: str) -> Iterator[None]:
        """The record is in hand until this ends. Raises InvalidEvent: ``deadly`` where the part has died too often with it in hand, ``unusable`` as
        ``blamed_on_record`` does."""
        place = (zlib.crc32(topic.encode()), partition, offset)
        if self._blamed and any(slot[:3] == place and slot[3] >= DEATHS for slot in self._blamed):
            raise InvalidEvent("deadly", f"{part} died {DEATHS} times while it worked on this record")
        self._write(0, (*place, 1))
        try:
            with blamed_on_record(part):
                yield
        except MemoryError:
            raise  # as the kernel's killer: it stays in hand
        except Exception:
            self._write(0, EMPTY)
            raise
        self._write(0, EMPTY)

    def close(self) -> None:
        self._page.close()

    def _read(self, number: int) -> Slot:
        slot: Slot = SLOT.unpack_from(self._page, number * SLOT.size)
        return slot

    def _write(self, number: int, slot: Slot) -> None:
        SLOT.pack_into(self._page, number * SLOT.size, *slot)
