"""Dead letters: a record that cannot be used is set aside, with its origin and the reason. Nothing is dropped silently."""

import base64
from datetime import UTC, datetime

import structlog

from streams.core.clock import Clock
from streams.core.errors import InvalidEvent
from streams.core.events import DeadLetter
from streams.core.metrics import Metrics
from streams.core.person_ids import people_in, person_of
from streams.core.topics import DEAD_LETTERS
from streams.core.values import LATEST
from streams.kafka import Publisher, Record

KEPT_BYTES = 64 << 10
MOST_PEOPLE = 1000
"""A record that names more people is set aside without its bytes: the letter could not say whose words they are."""
LEAST_CHARACTERS = 256
log = structlog.get_logger()


class DeadLetters:
    """Sets records aside on the dead-letters topic, and counts them by reason."""

    def __init__(self, publisher: Publisher, clock: Clock, metrics: Metrics, part: str) -> None:
        self._publisher, self._clock, self._metrics, self._part = publisher, clock, metrics, part

    def set_aside(self, record: Record, error: InvalidEvent, feedback_id: str | None = None) -> None:
        """Start publishing the dead letter. It is durable after the publisher's next ``flush``. Where the topic takes no letter so long, it is cut
        until it fits."""
        letter = letter_of(record, error, self._part, self._clock.now())
        self._send(letter if feedback_id is None else letter.model_copy(update={"feedback_id": feedback_id}))
        self._metrics.add("tidemill_dead_letters_total", topic=record.topic, reason=error.reason)

    def _send(self, letter: DeadLetter) -> None:
        try:
            self._publisher.send(DEAD_LETTERS, letter)
        except InvalidEvent as error:
            if (shorter := _shorter(letter)) is None:
                log.error("a dead letter is too long even without the record's bytes", topic=letter.source_topic, error=str(error))
                return
            self._send(shorter)


def letter_of(record: Record, error: InvalidEvent, part: str, at: datetime) -> DeadLetter:
    """The dead letter of a record, cut where it is long, with everybody whom it names. Of a dead letter, which an outbox could not send: itself."""
    value = record.value or b""
    if record.topic == DEAD_LETTERS.name:
        try:
            return _shorter(letter := DEAD_LETTERS.decode(value)) or letter
        except InvalidEvent:
            pass
    people = tuple(sorted(map(person_of, people_in(value))))
    if len(people) > MOST_PEOPLE:
        value, people = b"", ()
    return DeadLetter(
        source_topic=record.topic,
        source_partition=record.partition,
        source_offset=record.offset,
        source_at=_moment(record.timestamp_ms),
        reason=error.reason,
        message=str(error)[:2000],
        record_key=record.key.decode(errors="replace")[:200] if record.key else None,
        record_base64=base64.b64encode(value[:KEPT_BYTES]).decode(),
        people=people,
        part=part,
        at=at,
    )


def _moment(timestamp_ms: int) -> datetime | None:
    """A record's arrival; None where a producer wrote a time that no calendar knows."""
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC) if 0 <= timestamp_ms < LATEST.timestamp() * 1000 else None


def _shorter(letter: DeadLetter) -> DeadLetter | None:
    """The letter with half as much of its record; without it, it needs to name nobody. None where nothing is left to leave out."""
    kept = letter.record_base64[: len(letter.record_base64) // 8 * 4] if len(letter.record_base64) > LEAST_CHARACTERS else ""
    if not letter.record_base64:
        return letter.model_copy(update={"message": letter.message[:200], "people": ()}) if letter.people or len(letter.message) > 200 else None
    return letter.model_copy(update={"record_base64": kept})
