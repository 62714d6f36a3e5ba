"""A record that is set aside leaves a letter that its topic takes, whatever the record holds, and nobody's words without their name."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from streams.core.clock import FixedClock
from streams.core.errors import InvalidEvent
from streams.core.events import DeadLetter
from streams.core.metrics import Metrics
from streams.core.person_ids import person_of
from streams.core.topics import DEAD_LETTERS, FEEDBACK, Topic
from streams.kafka import Record, RecordPlace
from streams.kafka.dead_letters import MOST_PEOPLE, DeadLetters

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHY = InvalidEvent("not_json", "Feedback: no JSON")


class Taking:
    """A publisher whose topic takes so many bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.sent = limit, list[DeadLetter]()

    def send(self, topic: Topic[Any], event: Any, headers: Any = ()) -> Any:
        if len(event.encode()) > self.limit:
            raise InvalidEvent("too_large", f"{len(event.encode())} bytes")
        self.sent.append(event)
        return lambda: RecordPlace(topic.name, 0, 0)

    def retract(self, topic: Topic[Any], key: str) -> Any:
        raise NotImplementedError

    def flush(self) -> None: ...


def set_aside(value: bytes | None, limit: int = 4 << 20, topic: str = FEEDBACK.name) -> list[DeadLetter]:
    taking, metrics = Taking(limit), Metrics()
    DeadLetters(taking, FixedClock(NOW), metrics, "join").set_aside(Record(topic, 1, 7, 0, b"key", value), WHY)
    assert metrics.value("tidemill_dead_letters_total", topic=topic, reason="not_json") == 1
    return taking.sent


@pytest.mark.parametrize("limit", [200_000, 60_000, 10_000, 2_000, 800])
def test_a_letter_is_cut_until_its_topic_takes_it(limit: int) -> None:
    whole = b'{"user_id": "ann", "text": "' + b"x" * 200_000
    (letter,) = set_aside(whole, limit)
    assert (letter.source_partition, letter.source_offset, letter.reason) == (1, 7, "not_json")
    kept = base64.b64decode(letter.record_base64)
    assert whole.startswith(kept)
    assert letter.people == (person_of("ann"),) or not kept, "no words without their name"
    assert len(kept) > limit / 4 or limit < 2_000


def test_a_record_that_names_more_people_than_a_letter_can_keeps_its_place_without_its_words() -> None:
    crowd = json.dumps([{"user_id": f"u-{n}"} for n in range(MOST_PEOPLE + 1)]).encode()
    (letter,) = set_aside(crowd)
    assert (letter.record_base64, letter.people, letter.source_offset) == ("", (), 7)
    (letter,) = set_aside(json.dumps([{"user_id": f"u-{n}"} for n in range(MOST_PEOPLE)]).encode())
    assert len(letter.people) == MOST_PEOPLE


def test_a_letter_that_an_outbox_could_not_send_is_sent_shorter_and_still_says_whom_it_names() -> None:
    (before,) = set_aside(b'{"user_id": "ann", "text": "' + b"x" * 200_000)
    (after,) = set_aside(before.encode(), limit=60_000, topic=DEAD_LETTERS.name)
    assert (after.source_topic, after.source_offset, after.people) == (FEEDBACK.name, 7, (person_of("ann"),))
    assert 0 < len(after.record_base64) < len(before.record_base64)


@pytest.mark.parametrize("value", [None, b"", b"\xff\x00", b"{"])
def test_a_tombstone_and_bytes_of_any_kind_are_set_aside_as_they_are(value: bytes | None) -> None:
    (letter,) = set_aside(value)
    assert base64.b64decode(letter.record_base64) == (value or b"")
