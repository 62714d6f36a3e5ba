"""Reads feedback requests: JSON in, a Feedback event out, or an error that says what is wrong."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from streams.core.errors import InvalidEvent
from streams.core.events import Feedback, new_id
from streams.core.person_ids import plain_id

CARRIED_BY = {"thumb": "thumb", "rating": "rating", "over": "comparison", "signal": "signal", "retracts": "retraction"}
"""Fields that belong to one kind alone, so that ``kind`` may be left out; ``text`` belongs to two."""
AHEAD = timedelta(days=1)
"""How far a client's clock may be ahead. The join treats feedback from the future as given on arrival."""
KNOWN_FIELDS = frozenset({*Feedback.model_fields, "conversation_id"})
WORDS = ("comment", "correction")
ANSWER_PREFIXES = ("chatcmpl-", "cmpl-", "resp_")
OWN_PREFIX = "ep-"
"""Every id that an actor gives begins with it."""


def read_object(body: bytes) -> dict[str, Any]:
    """A request body's JSON object without what is null. Raises InvalidEvent."""
    try:
        given: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidEvent("not_json", "the body is not JSON") from None
    if not isinstance(given, dict):
        raise InvalidEvent("invalid", "the body is not a JSON object")
    return {name: value for name, value in given.items() if value is not None}


def read_all(given: dict[str, Any], user: str | None, now: datetime, last: Callable[[str], str | None]) -> tuple[Feedback, ...]:
    """The events that a request means: one, or two where words stand beside a thumb, a rating, a comparison, a signal or a retraction. The words
    are a comment (or a correction, where ``kind`` says so) under an id of their own, ``ID-words``. Raises InvalidEvent as ``read_feedback`` does.
    """
    beside = [name for name in CARRIED_BY if name in given]
    if "text" not in given or len(beside) != 1:
        return (read_feedback(given, user, now, last),)
    whole = {"feedback_id": new_id("fb")} | given
    kind = whole.pop("kind", None)
    if kind not in (None, *WORDS, CARRIED_BY[beside[0]]):
        raise InvalidEvent("invalid", f"kind {kind!r} has no field '{beside[0]}': leave kind out")
    value = read_feedback({name: part for name, part in whole.items() if name != "text"}, user, now, last)
    words = {name: part for name, part in whole.items() if name != beside[0]}
    told = {"feedback_id": plain_id(f"{value.feedback_id}-words"), "kind": kind if kind in WORDS else WORDS[0]}
    return value, read_feedback(words | told, user, now, last)


def read_feedback(given: dict[str, Any], user: str | None, now: datetime, last: Callable[[str], str | None]) -> Feedback:
    """The event that a request means. Raises InvalidEvent (``unknown_conversation``: ``last``, which names the episode of a conversation's
    last answer, knows none).

    What may be left out: ``feedback_id`` (a new one; send your own to be safe against sending twice), ``at`` (now), ``kind`` where the
    field given tells it, ``user_id`` (the ``x-tidemill-user`` header). ``episode_id`` and ``over`` may be an answer's own id (``chatcmpl-ep-…``);
    instead of ``episode_id`` a ``conversation_id`` means the last answer of that conversation.
    """
    if unknown := sorted(given.keys() - KNOWN_FIELDS):
        strange = ", ".join(repr(name[:100]) for name in unknown[:5])
        raise InvalidEvent("invalid", f"no such field: {strange}; there are {', '.join(sorted(KNOWN_FIELDS - {'schema_version'}))}")
    fields = {"feedback_id": new_id("fb"), "at": now.isoformat()} | ({"user_id": user} if user else {}) | given
    kinds = {kind for name, kind in CARRIED_BY.items() if name in fields}
    if "kind" not in fields and len(kinds) == 1:
        fields["kind"] = kinds.pop()
    episode_id, conversation_id = fields.get("episode_id"), fields.pop("conversation_id", None)
    if isinstance(episode_id, str):
        fields["episode_id"] = one_episode(without_prefix(episode_id))
    elif episode_id is None and (named := plain_id(conversation_id)) is not None:
        if (found := last(named)) is None:
            raise InvalidEvent("unknown_conversation", "this replica remembers no answer of that conversation: send the episode_id")
        fields["episode_id"] = found
    if isinstance(over := fields.get("over"), str):
        fields["over"] = without_prefix(over)
    feedback = Feedback.decode(json.dumps(fields).encode())
    if feedback.at > now + AHEAD:
        raise InvalidEvent("invalid", f"at lies in the future ({feedback.at.isoformat()}): is that clock right? Leave it out for now")
    return feedback


def one_episode(episode_id: str) -> str:
    """The same id. Raises InvalidEvent for the header ``x-tidemill-episode`` of an answer with several choices, which lists an id for each."""
    ids = [part.strip() for part in episode_id.split(",")]
    if len(ids) > 1 and all(part.startswith(OWN_PREFIX) for part in ids):
        raise InvalidEvent("invalid", f"episode_id lists {len(ids)} episodes, one for each choice of the answer: send the one that was judged")
    return episode_id


def without_prefix(answer_id: str) -> str:
    """The episode's id in an answer's own id."""
    for prefix in ANSWER_PREFIXES:
        answer_id = answer_id.removeprefix(prefix)
    return answer_id


class FeedbackIdempotency:
    """Remembers recent feedback by tenant and id, so that a retry gets the same reply. The oldest is dropped first."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._known: OrderedDict[tuple[str, str], tuple[bytes, str]] = OrderedDict()

    def seen(self, tenant: str, given: dict[str, Any]) -> str | None:
        """The episode of the same feedback, if it was accepted before. Raises InvalidEvent (``other``) when its id was used for other feedback."""
        feedback_id = given.get("feedback_id")
        known = self._known.get((tenant, feedback_id)) if isinstance(feedback_id, str) else None
        if known is None:
            return None
        if known[0] != _digest(given):
            raise InvalidEvent("other", "this feedback_id was used for other feedback; to change an opinion, send new feedback with a new id")
        return known[1]

    def note(self, tenant: str, given: dict[str, Any], feedback: Feedback) -> None:
        """Remember accepted feedback."""
        self._known[tenant, feedback.feedback_id] = (_digest(given), feedback.episode_id)
        while len(self._known) > self._remembered:
            self._known.popitem(last=False)


def _digest(given: dict[str, Any]) -> bytes:
    """Hash of what is said: without the time, which a client that retries may stamp anew, and with ids in their one form."""
    said: dict[str, Any] = {name: value for name, value in given.items() if name != "at"}
    said |= {name: without_prefix(said[name]) for name in ("episode_id", "over") if isinstance(said.get(name), str)}
    said |= {name: plain_id(said[name]) for name in ("user_id", "conversation_id") if name in said}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()
