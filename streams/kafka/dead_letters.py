"""Dead letters: a record that cannot be used is set aside, with its origin and the reason. Nothing is dropped silently."""

import base64
from datetime import datetime

from streams.core.clock import Clock
from streams.core.errors import InvalidEvent
from streams.core.events import DeadLetter
from streams.core.metrics import Metrics
from streams.core.person_ids import people_in, person_of
from streams.core.topics import DEAD_LETTERS
from streams.kafka import Publisher, Record

KEPT_BYTES = 64 << 10


class DeadLetters:
    """Sets records aside on the dead-letters topic, and counts them by reason."""

    def __init__(self, publisher: Publisher, clock: Clock, metrics: Metrics, part: str) -> None:
        self._publisher, self._clock, self._metrics, self._part = publisher, clock, metrics, part

    def set_aside(self, record: Record, error: InvalidEvent, feedback_id: str | None = None) -> None:
        """Start publishing the dead letter. It is durable after the publisher's next ``flush``."""
        letter = letter_of(record, error, self._part, self._clock.now())
        self._publisher.send(DEAD_LETTERS, letter if feedback_id is None else letter.model_copy(update={"feedback_id": feedback_id}))
        self._metrics.add("tidemill_dead_letters_total", topic=record.topic, reason=error.reason)


def letter_of(record: Record, error: InvalidEvent, part: str, at: datetime) -> DeadLetter:
    """The dead letter of a record, cut where it is long, with everybody whom it names."""
    value = record.value or b""
    return DeadLetter(
        source_topic=record.topic,
        source_partition=record.partition,
        source_offset=record.offset,
        reason=error.reason,
        message=str(error)[:2000],
        record_key=record.key.decode(errors="replace")[:200] if record.key else None,
        record_base64=base64.b64encode(value[:KEPT_BYTES]).decode(),
        people=tuple(sorted(map(person_of, people_in(value)))),
        part=part,
        at=at,
    )
