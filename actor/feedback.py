"""The door for feedback: JSON in, a Feedback event out, or an error that says what is wrong with it."""

import json
from datetime import datetime
from typing import Any

from streams.errors import InvalidEvent
from streams.events import Feedback, new_id

CARRIED_BY = {"thumb": "thumb", "rating": "rating", "over": "comparison", "signal": "signal", "retracts": "retraction"}
"""Fields that belong to one kind alone, so that ``kind`` may be left out; ``text`` belongs to two."""
ANSWER_PREFIXES = ("chatcmpl-", "cmpl-")


def read_feedback(body: bytes, user: str | None, now: datetime) -> Feedback:
    """The event that a request body means. Raises InvalidEvent.

    What may be left out: ``feedback_id`` (a new one; send your own to be safe against sending twice), ``at`` (now), ``kind`` where the
    field given tells it, ``user_id`` (the ``x-tidemill-user`` header). An ``episode_id`` may be the answer's own id (``chatcmpl-ep-…``).
    """
    try:
        given: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidEvent("not_json", "the body is not JSON") from None
    if not isinstance(given, dict):
        raise InvalidEvent("invalid", "the body is not a JSON object")
    fields = {"feedback_id": new_id("fb"), "at": now.isoformat()} | ({"user_id": user} if user else {})
    fields |= {name: value for name, value in given.items() if value is not None}
    kinds = {kind for name, kind in CARRIED_BY.items() if name in fields}
    if "kind" not in fields and len(kinds) == 1:
        fields["kind"] = kinds.pop()
    if isinstance(episode_id := fields.get("episode_id"), str):
        fields["episode_id"] = without_prefix(episode_id)
    return Feedback.decode(json.dumps(fields).encode())


def without_prefix(answer_id: str) -> str:
    """The episode's id in an answer's own id."""
    for prefix in ANSWER_PREFIXES:
        answer_id = answer_id.removeprefix(prefix)
    return answer_id
