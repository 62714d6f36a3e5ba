"""What people may send as feedback, and what they are told when it cannot be used."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from actor.doors.feedback_door import FeedbackIdempotency, read_feedback, read_object
from streams.core.errors import InvalidEvent
from streams.core.events import Feedback

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def read(given: Any, user: str | None = None) -> Feedback:
    return read_feedback(read_object(json.dumps(given).encode()), user, NOW, {"cv-1": "ep-last"}.get)


def test_a_thumb_needs_only_its_episode() -> None:
    feedback = read({"episode_id": "ep-1", "thumb": "down"}, user="ann")
    assert (feedback.kind, feedback.thumb, feedback.user_id, feedback.at) == ("thumb", "down", "ann", NOW)
    assert feedback.feedback_id.startswith("fb-")


def test_the_answers_own_id_names_its_episode() -> None:
    assert read({"episode_id": "chatcmpl-ep-1", "rating": 4}).episode_id == "ep-1"
    assert read({"episode_id": "chatcmpl-ep-1", "over": "cmpl-ep-2"}).over == "ep-2"


def test_what_the_sender_says_is_kept() -> None:
    at = "2025-05-05T05:05:05Z"
    feedback = read({"episode_id": "ep", "feedback_id": "mine", "user_id": "bob", "kind": "correction", "text": "Ahoy", "at": at}, user="ann")
    assert (feedback.feedback_id, feedback.user_id, feedback.kind, feedback.at.year) == ("mine", "bob", "correction", 2025)


@pytest.mark.parametrize(("given", "told"), [
    ({"episode_id": "ep", "thumb": 7}, "'up' or 'down'"),
    ({"episode_id": "ep", "rating": 9}, "less than or equal to 5"),
    ({"thumb": "up"}, "episode_id"),
    ({"episode_id": "ep", "text": "which kind?"}, "kind"),
    ({"episode_id": "ep", "kind": "thumb", "thumb": "up", "rating": 1}, "exactly the field"),
    ({"episode_id": "ep", "thumb": "up", "at": "2025-05-05T05:05:05"}, "timezone"),
    ({"episode_id": "ep", "thumb": "up", "schema_version": 2}, "schema_version"),
    ([1], "object"),
    ({"episode_id": "ep", "over": "chatcmpl-ep"}, "comparison needs another episode"),
])  # fmt: skip
def test_a_bad_one_is_told_why(given: Any, told: str) -> None:
    with pytest.raises(InvalidEvent, match=told):
        read(given)


def test_bytes_that_are_no_json_are_told_so() -> None:
    with pytest.raises(InvalidEvent, match="not JSON"):
        read_object(b"\xff{")


def test_a_conversation_means_its_last_answer() -> None:
    assert read({"conversation_id": "cv-1", "thumb": "up"}).episode_id == "ep-last"
    assert read({"conversation_id": "cv-1", "episode_id": "ep-2", "thumb": "up"}).episode_id == "ep-2"
    with pytest.raises(InvalidEvent, match="send the episode_id"):
        read({"conversation_id": "cv-2", "thumb": "up"})


def test_what_is_sent_twice_is_known_again_and_an_id_cannot_be_used_for_something_else() -> None:
    door, sent = FeedbackIdempotency(2), {"feedback_id": "fb-1", "conversation_id": "cv-1", "thumb": "up"}
    assert door.seen("acme", sent) is None
    door.note("acme", sent, read(sent))
    assert door.seen("acme", dict(reversed(sent.items()))) == "ep-last"
    assert door.seen("other", sent) is None
    assert door.seen("acme", {"episode_id": "ep-1", "thumb": "up"}) is None
    with pytest.raises(InvalidEvent, match="with a new id"):
        door.seen("acme", sent | {"thumb": "down"})
    for number in (2, 3):
        door.note("acme", sent, read(sent | {"feedback_id": f"fb-{number}"}))
    assert door.seen("acme", sent) is None  # the oldest has left


def test_a_retry_that_stamps_the_time_anew_is_a_retry_and_another_value_is_not() -> None:
    known, said = FeedbackIdempotency(10), {"feedback_id": "f-9", "episode_id": "ep", "thumb": "up", "at": "2026-01-01T00:00:00Z"}
    known.note("acme", said, read(said))
    assert known.seen("acme", said | {"at": "2026-01-01T00:00:01Z"}) == "ep"
    with pytest.raises(InvalidEvent, match="other feedback"):
        known.seen("acme", said | {"thumb": "down"})


@pytest.mark.parametrize("at", ["2031-01-01T00:00:00Z", "9999-12-31T23:59:59-05:00"])
def test_a_time_far_ahead_is_refused_at_once(at: str) -> None:
    with pytest.raises(InvalidEvent, match=r"future|between 1970 and 3000"):
        read({"episode_id": "ep", "thumb": "up", "at": at})


@pytest.mark.parametrize("named", ["cv-1", " cv-1", "cv-1\n"])
def test_a_conversation_is_named_by_the_rule_for_ids(named: str) -> None:
    assert read({"conversation_id": named, "thumb": "up"}).episode_id == "ep-last"
