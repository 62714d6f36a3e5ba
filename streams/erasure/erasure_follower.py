"""Follows the erasures topic, so that each part knows which people asked to be erased."""

from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from streams.core.errors import InvalidEvent, Unavailable
from streams.core.events import Erased, Erasure
from streams.core.part_context import PartContext
from streams.core.poison_records import RecordInHand, blamed_on_record
from streams.core.topics import ERASED, ERASURES
from streams.erasure.forgotten_people import Forgotten
from streams.kafka import Consumer, Record

log = structlog.get_logger()


@dataclass(frozen=True)
class ErasureRequest:
    """One erasure, and its place on the topic."""

    erasure: Erasure
    offset: int
    arrived_ms: int


class ErasureFollower:
    """Reads the erasures topic from its beginning: a part that reads old records again must know every erasure there ever was. Not thread-safe."""

    def __init__(self, context: PartContext, part: str) -> None:
        """Returns when everything that is on the topic now has been read. Raises Unavailable."""
        self._in_hand = RecordInHand(context.state / f"{part}-erasures.in-hand")
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
        """Offset after the last erasure that was read."""
        return self.asked[-1].offset + 1 if self.asked else 0

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Read new erasures. True when there were any."""
        before = len(self.asked)
        self.asked += read_erasures(self._consumer.poll(timeout_s), self.forgotten, self._in_hand)
        return len(self.asked) > before

    def since(self, offset: int) -> list[ErasureRequest]:
        """The erasures at this offset and later."""
        return [each for each in self.asked if each.offset >= offset]

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()
        self._in_hand.close()


def read_erasures(records: Iterable[Record], forgotten: Forgotten, in_hand: RecordInHand | None = None) -> list[ErasureRequest]:
    """Decode erasures and add them to ``forgotten``. A record that cannot be decoded, or has killed the part twice, is logged and skipped."""
    found = []
    for record in records:
        step = "reading an erasure"
        try:
            with in_hand.working_on(record.topic, record.partition, record.offset, step) if in_hand else blamed_on_record(step):
                erasure = ERASURES.decode(record.value)
        except InvalidEvent as error:
            log.error("an erasure cannot be read and has no effect", offset=record.offset, error=str(error))
            continue
        if not erasure.people:
            log.error("an erasure was made with a key that this part does not have: it can neither act nor report; set erasure.person_key(_file)",
                      offset=record.offset, key_id=erasure.key_id)  # fmt: skip
            continue
        forgotten.add(erasure, record.timestamp_ms)
        found.append(ErasureRequest(erasure, record.offset, record.timestamp_ms))
    return found


def read_erased(records: Iterable[Record]) -> list[Erased]:
    """Decode the parts' reports of what they erased. A record that cannot be decoded is logged and skipped."""
    found = []
    for record in records:
        try:
            found.append(ERASED.decode(record.value))
        except InvalidEvent as error:
            log.error("a part's report of an erasure cannot be read", offset=record.offset, error=str(error))
    return found
