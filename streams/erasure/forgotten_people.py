"""People who asked to be erased: which data an erasure covers, and records without these data. Pure: no Kafka here.

An erasure covers what a person said or asked before it, by the event's own time or by its arrival on the log, whichever covers more: a sender's
clock may be wrong, and an outbox may deliver late. Data of a person who comes back after the erasure is kept again.
"""

import base64
from datetime import datetime, timedelta

from msgspec.structs import replace

from streams.core.errors import InvalidEvent
from streams.core.events import Erasure, Label
from streams.core.person_ids import people_in, people_of
from streams.core.poison_records import blamed_on_record
from streams.core.topics import DEAD_LETTERS, EPISODES, FEEDBACK, LABELS
from streams.core.values import LATEST
from streams.join.feedback_channels import evidence_of
from streams.join.feedback_join import CENSORED, verdict_of
from streams.join.join_settings import EvidenceSettings
from streams.kafka import Record

TOPICS_WITH_PEOPLE = (EPISODES, FEEDBACK, LABELS, DEAD_LETTERS)
"""The topics that hold what people said."""
LATEST_MS = 1 << 62
NEVER = LATEST - timedelta(microseconds=1)


class Forgotten:
    """The people who asked to be erased, and when."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[datetime, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._asked)

    def add(self, erasure: Erasure, arrived_ms: int) -> None:
        """Add an erasure that arrived on the log at ``arrived_ms``."""
        for person in erasure.people:
            at, ms = self._asked.get(person, (erasure.at, arrived_ms))
            self._asked[person] = (max(at, erasure.at), max(ms, arrived_ms))

    @classmethod
    def as_if_absent(cls, user_id: str) -> "Forgotten":
        """Erases this person for all time: to find out what things would be like without them."""
        made = cls()
        made.add(Erasure.of(user_id, "", NEVER), LATEST_MS)
        return made

    def covers(self, user_id: str | None, at: datetime, arrived_ms: int) -> bool:
        """True when an erasure covers what this person said at ``at``, or what arrived on the log at ``arrived_ms``."""
        return bool(self._asked) and user_id is not None and any(self.covers_person(person, at, arrived_ms) for person in people_of(user_id))

    def covers_person(self, person: str, at: datetime, arrived_ms: int) -> bool:
        """The same for a person given by a hash of their user_id."""
        if (asked := self._asked.get(person)) is None:
            return False
        return at <= asked[0] or arrived_ms <= asked[1]

    def covers_by_event_time(self, user_id: str | None, at: datetime) -> bool:
        """The same by event time alone, where the arrival time is not known."""
        return self.covers(user_id, at, LATEST_MS)

    def names(self, raw: bytes | None, arrived_ms: int = 0) -> bool:
        """True when these bytes name an erased person. Fast: only user_ids are decoded."""
        if not self._asked or raw is None:
            return False
        return any(person in self._asked for user_id in people_in(raw) for person in people_of(user_id))


def label_without(label: Label, forgotten: Forgotten, arrived_ms: int, settings: EvidenceSettings) -> Label | None:
    """The label without the votes that an erasure covers: the same object when there are none, None when nothing is left."""
    if forgotten.covers(label.user_id, label.episode_at, arrived_ms):
        return None
    votes = tuple(vote for vote in label.votes if not forgotten.covers(vote.user_id, vote.at, arrived_ms))
    if len(votes) == len(label.votes):
        return label
    if not votes and not label.superseded:
        return None
    censored = label.outcome in CENSORED
    verdict = None if censored else verdict_of(votes)
    return label.model_copy(update={
        "votes": votes,
        "verdict": verdict,
        "led_by": () if verdict is None else label.led_by,
        "evidence": () if censored else evidence_of(votes, settings),
        "first_feedback_at": min((v.at for v in votes), default=label.first_feedback_at),
        "newest_feedback_at": max((v.at for v in votes), default=label.newest_feedback_at),
    })  # fmt: skip


def record_without(record: Record, forgotten: Forgotten, settings: EvidenceSettings) -> Record:
    """The record without what an erasure covers: the same object when there is nothing, a value of None when nothing is left. Any topic."""
    if record.topic == DEAD_LETTERS.name:
        return _letter_without(record, forgotten)
    if not forgotten.names(record.value):
        return record
    try:
        with blamed_on_record("an erasure"):
            if record.topic == EPISODES.name:
                episode = EPISODES.decode(record.value)
                gone = forgotten.covers(episode.user_id, episode.ended_at, record.timestamp_ms)
            elif record.topic == FEEDBACK.name:
                feedback = FEEDBACK.decode(record.value)
                gone = forgotten.covers(feedback.user_id, feedback.at, record.timestamp_ms)
            elif record.topic == LABELS.name:
                label = LABELS.decode(record.value)
                left = label_without(label, forgotten, record.timestamp_ms, settings)
                return record if left is label else _with_value(record, left.encode() if left else None)
            else:
                return record
    except InvalidEvent:
        gone = _any_covered(record.value or b"", forgotten, record.timestamp_ms)
    return _with_value(record, None) if gone else record


def _letter_without(record: Record, forgotten: Forgotten) -> Record:
    """A dead letter keeps its place and its reason, but not the original bytes. What counts is when these arrived: a part that had not heard of the
    erasure may write the letter after it."""
    try:
        letter = DEAD_LETTERS.decode(record.value)
        raw = base64.b64decode(letter.record_base64)
    except (InvalidEvent, ValueError):
        return record
    arrived_ms = min(record.timestamp_ms, int(letter.source_at.timestamp() * 1000)) if letter.source_at else record.timestamp_ms
    named = any(forgotten.covers_person(person, letter.at, arrived_ms) for person in letter.people)
    if not raw or not (named or _any_covered(raw, forgotten, arrived_ms, letter.at)):
        return record
    return _with_value(record, letter.model_copy(update={"record_base64": "", "people": ()}).encode())


def people_named(record: Record) -> set[str]:
    """Hashes of everybody whom a record names; of a dead letter, also those whom the record in it named."""
    raw, people = record.value or b"", set[str]()
    if record.topic == DEAD_LETTERS.name:
        try:
            letter = DEAD_LETTERS.decode(record.value)
            raw, people = base64.b64decode(letter.record_base64), set(letter.people)
        except (InvalidEvent, ValueError):
            return set()
    return people | {person for user_id in people_in(raw) for person in people_of(user_id)}


def _any_covered(raw: bytes, forgotten: Forgotten, arrived_ms: int, at: datetime = NEVER) -> bool:
    return any(forgotten.covers(user_id, at, arrived_ms) for user_id in people_in(raw))


def _with_value(record: Record, value: bytes | None) -> Record:
    return replace(record, value=value)
