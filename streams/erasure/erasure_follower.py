"""Following the erasures on the log: who asked to be forgotten, told to each part beside its own inputs."""

from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from streams.core.errors import InvalidEvent, Unavailable
from streams.core.events import Erased, Erasure
from streams.core.part_context import PartContext
from streams.core.topics import ERASED, ERASURES
from streams.erasure.forgotten_people import Forgotten
from streams.kafka import Consumer, Record

log = structlog.get_logger()


@dataclass(frozen=True)
class ErasureRequest:
    """One erasure, and where it lies on the topic."""

    erasure: Erasure
    offset: int
    arrived_ms: int


class ErasureFollower:
    """Reads the topic from its beginning: a part that folds old records must know everybody who was ever to be forgotten. Not thread-safe."""

    def __init__(self, context: PartContext, part: str) -> None:
        """Returns when all that lies on the topic now is known. Raises Unavailable."""
        self._consumer = Consumer(context.kafka, [ERASURES], part, context.metrics)
        self.forgotten = Forgotten()
        self.asked: list[ErasureRequest] = []
        try:
            while self._consumer.measure_lag() > 0:
                self.poll(timeout_s=0.5)
        except Unavailable:
            self._consumer.close()
            raise

    @property
    def end(self) -> int:
        """Offset after the last erasure that is known."""
        return self.asked[-1].offset + 1 if self.asked else 0

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Take what has come; True when somebody new asked."""
        before = len(self.asked)
        self.asked += read_erasures(self._consumer.poll(timeout_s), self.forgotten)
        return len(self.asked) > before

    def since(self, offset: int) -> list[ErasureRequest]:
        """Those at this offset and later."""
        return [each for each in self.asked if each.offset >= offset]

    def close(self) -> None:
        """Hang up."""
        self._consumer.close()


def read_erasures(records: Iterable[Record], forgotten: Forgotten) -> list[ErasureRequest]:
    """The erasures among the records of that topic, now among the forgotten; what cannot be read is told and passed over."""
    found = []
    for record in records:
        try:
            erasure = ERASURES.decode(record.value)
        except InvalidEvent as error:
            log.error("an erasure cannot be read: nobody is forgotten by it", offset=record.offset, error=str(error))
            continue
        forgotten.take(erasure, record.timestamp_ms)
        found.append(ErasureRequest(erasure, record.offset, record.timestamp_ms))
    return found


def read_erased(records: Iterable[Record]) -> list[Erased]:
    """What parts say they have removed; a record that cannot be read says nothing."""
    found = []
    for record in records:
        try:
            found.append(ERASED.decode(record.value))
        except InvalidEvent as error:
            log.error("what a part says to have erased cannot be read", offset=record.offset, error=str(error))
    return found
