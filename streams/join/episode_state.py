"""What the join knows of one episode, and its form on disk: JSON. What never changes (the episode) is apart from what does (its feedback)."""

from datetime import datetime
from typing import Any

import msgspec

from streams.core.events import Assignment, Event, Feedback, Message, Outcome


class KnownEpisode(msgspec.Struct, frozen=True):
    """The fields of an episode that its label needs."""

    policy: str
    tenant: str
    adapter: str | None
    outcome: Outcome
    messages: tuple[Message, ...]
    answer: str
    ended_at: datetime
    user_id: str | None = None
    conversation_id: str | None = None
    assignment: Assignment | None = None
    tools: tuple[dict[str, Any], ...] = ()
    chat_template_kwargs: dict[str, Any] = {}
    unrenderable: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()


class ArrivedFeedback(msgspec.Struct, frozen=True):
    """One feedback event, with its arrival time and its offset."""

    feedback: Feedback
    at: datetime
    offset: int = -1


class EpisodeState(msgspec.Struct, frozen=True):
    """The join's state of one episode: the episode and its distinct feedback; or, while it has not come, all feedback that waits for it, since of two
    equal ones only the later may be in time; or, after its window, the mark that it leaves."""

    expires_at: datetime
    """Arrival of the episode (or, while it has not arrived, of the first feedback) plus the window. Of a closed one: when its mark may go."""
    known: KnownEpisode | None = None
    feedback: tuple[ArrivedFeedback, ...] = ()
    superseded: tuple[str, ...] = ()
    """Feedback of which only the id is known, because the state was restored from a label."""
    erasures: int = 0
    """How often a person was erased from it."""
    closed: str | None = None
    """A digest of the episode once its window has passed: nothing else is kept of it, and feedback that comes now is too late."""


def encode_known(known: KnownEpisode) -> bytes:
    """The episode as JSON."""
    return _encoder.encode(known)


def encode_state(state: EpisodeState) -> bytes:
    """The state as JSON, without its episode."""
    return _encoder.encode(state if state.known is None else msgspec.structs.replace(state, known=None))


def decode_state(state: bytes, known: bytes | None) -> EpisodeState:
    """The state from its JSON, and that of its episode. States of older versions hold their episode themselves."""
    found = _states.decode(state)
    return found if known is None else msgspec.structs.replace(found, known=_known.decode(known))


def _to_json(value: Any) -> Any:
    return msgspec.Raw(value.encode() if isinstance(value, Event) else value.__pydantic_serializer__.to_json(value, exclude_none=True))


def _from_json(kind: type[Any], value: Any) -> Any:
    return kind.model_validate(value)


_encoder = msgspec.json.Encoder(enc_hook=_to_json)
_states = msgspec.json.Decoder(EpisodeState, dec_hook=_from_json)
_known = msgspec.json.Decoder(KnownEpisode, dec_hook=_from_json)
