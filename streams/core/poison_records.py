"""One rule for a record that makes a part fail, wherever it does: the record is set aside with its reason, and the part goes on.

Two kinds. A step that raises: ``blamed_on_record`` makes an InvalidEvent of it. A step that ends the whole process (memory, native code): the page of
``RecordInHand`` outlives the process, and a record that was in hand at two deaths is set aside unread.
"""

import mmap
import sqlite3
import struct
import traceback
import zlib
from pathlib import Path
from types import TracebackType

from streams.core.errors import InvalidEvent, TidemillError, Unavailable

NOT_ITS_FAULT = (TidemillError, OSError, MemoryError, sqlite3.Error)
"""What dependencies and the machine do, not a record."""
DEATHS = 2
"""A record that was in hand at so many deaths of the part is set aside."""
TOLD = 1 << 16
"""Stands for the number of deaths of a record that was set aside for good."""
SLOT = struct.Struct("<IiqI")  # CRC-32 of the topic, partition, offset, deaths
SLOTS = 32
"""The first is the record in hand; the others are those that were in hand at a death, newest first."""
EMPTY = (0, 0, 0, 0)
Slot = tuple[int, int, int, int]


class blamed_on_record:  # a class, since a generator's context costs three times as much
    """Whatever fails inside is the record's fault: raises InvalidEvent (``unusable``) with the step, the error's type and its place in the code.

    The error's own words are left out, since they may hold what a person said.
    """

    __slots__ = ("_step",)

    def __init__(self, step: str) -> None:
        self._step = step

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, NOT_ITS_FAULT):
            raise fault_of(error, self._step) from error


def fault_of(error: Exception, step: str) -> InvalidEvent:
    """What a step's failure says about its record."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return InvalidEvent("unusable", f"{step} failed with {type(error).__name__} at {Path(where.filename).name}:{where.lineno}")


class RecordInHand:
    """Remembers across the part's deaths which record it was working on. A few bytes written in memory for each record. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Counts a death where the last process left a record in hand. Raises Unavailable when the file cannot be made."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a+b") as file:
                file.truncate(SLOT.size * SLOTS)
                self._page = mmap.mmap(file.fileno(), SLOT.size * SLOTS)
        except OSError as error:
            raise Unavailable(f"cannot open {path}: {error}") from error
        self._topics: dict[str, int] = {}
        self._part, self._survives = "", True
        self._blamed = [slot for number in range(1, SLOTS) if (slot := self._read(number)) != EMPTY]
        if (found := self._read(0)) != EMPTY:
            deaths = 1 + next((slot[3] for slot in self._blamed if slot[:3] == found[:3]), 0)
            others = [slot for slot in self._blamed if slot[:3] != found[:3]]
            self._blamed = [(*found[:3], deaths), *others][: SLOTS - 1]
            self._write_blamed()
        self._write(0, EMPTY)

    def working_on(self, topic: str, partition: int, offset: int, part: str, survives: bool = True) -> "RecordInHand":
        """A context: the record is in hand until it ends. Raises InvalidEvent: ``deadly`` where the part has died too often with it in hand,
        ``unusable`` as ``blamed_on_record`` does. One at a time. ``survives=False``: the part ends when this fails, which counts as a death."""
        if (code := self._topics.get(topic)) is None:
            code = self._topics[topic] = zlib.crc32(topic.encode())
        if self.is_deadly(topic, partition, offset):
            raise InvalidEvent("deadly", f"{part} died {DEATHS} times while it worked on this record")
        SLOT.pack_into(self._page, 0, code, partition, offset, 1)
        self._part, self._survives = part, survives
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            SLOT.pack_into(self._page, 0, *EMPTY)
            return
        if isinstance(error, MemoryError) or not isinstance(error, Exception):
            return  # MemoryError as the kernel's killer: it stays in hand
        its_fault = not isinstance(error, NOT_ITS_FAULT)
        if its_fault and not self._survives:
            return
        SLOT.pack_into(self._page, 0, *EMPTY)
        if its_fault:
            raise fault_of(error, self._part) from error

    def is_deadly(self, topic: str, partition: int, offset: int) -> bool:
        """True where the part has died too often with this record in hand."""
        if not self._blamed:
            return False
        place = (zlib.crc32(topic.encode()), partition, offset)
        return any(slot[:3] == place and slot[3] >= DEATHS for slot in self._blamed)

    def died_at(self, topic: str, partition: int, offset: int) -> bool:
        """True where the part has died with this in hand, and has not forgotten it."""
        place = (zlib.crc32(topic.encode()), partition, offset)
        return any(slot[:3] == place for slot in self._blamed)

    def forget(self, topic: str, partition: int, offset: int) -> None:
        """Forget its deaths."""
        place = (zlib.crc32(topic.encode()), partition, offset)
        self._blamed = [slot for slot in self._blamed if slot[:3] != place]
        self._write_blamed()

    def first_told(self, topic: str, partition: int, offset: int) -> bool:
        """True for the first who asks about a deadly record, of all this part's lives: a part that reads from the beginning at each start sets it
        aside once."""
        place = (zlib.crc32(topic.encode()), partition, offset)
        for number, slot in enumerate(self._blamed):
            if slot[:3] == place and DEATHS <= slot[3] < TOLD:
                self._blamed[number] = (*place, TOLD)
                self._write(number + 1, self._blamed[number])
                return True
        return False

    def put_down(self) -> None:
        """Nothing is in hand: the part was told to stop, whatever it was at work on."""
        self._write(0, EMPTY)

    def close(self) -> None:
        self._page.close()

    def _write_blamed(self) -> None:
        for number in range(1, SLOTS):
            self._write(number, self._blamed[number - 1] if number <= len(self._blamed) else EMPTY)

    def _read(self, number: int) -> Slot:
        slot: Slot = SLOT.unpack_from(self._page, number * SLOT.size)
        return slot

    def _write(self, number: int, slot: Slot) -> None:
        SLOT.pack_into(self._page, number * SLOT.size, *slot)
