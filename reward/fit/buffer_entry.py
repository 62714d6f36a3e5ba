"""One episode's label as the refit needs it, and its encoding in the durable table."""

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_type_hints

import numpy as np
import torch
from pydantic import AwareDatetime, ConfigDict, create_model
from torch import Tensor

from reward.fit.label_evidence import ChannelVerdict, is_good
from streams.core.errors import InvalidEvent
from streams.core.events import Channel

BUFFER_LAYOUT = 5
"""Increase it whenever an entry's encoding changes: the labels are then read again instead of entries that cannot be decoded."""
BY_PEOPLE = frozenset({Channel.THUMBS.value, Channel.RATINGS.value})
FEATURE_LIMIT = 6e4
"""Features are stored in half precision, whose largest number is 65504."""
NAMELESS = "anonymous-"
"""How the voter of a label begins who gave no name: each such label has a voter of its own."""


@dataclass(frozen=True)
class LedAnswer:
    """An earlier answer of the conversation, which the people's verdict reaches."""

    said: str
    """As ``BufferEntry.said``: an entry of its own with a person's verdict replaces it."""
    weight: float
    """Its part of the weight of the label's thumbs and ratings."""
    features_D: Tensor


@dataclass(frozen=True)
class BufferEntry:
    """One episode's label as the refit needs it. ``D`` features, half precision."""

    episode_id: str
    verdict: float | None
    """Weighted mean of the channels' verdicts. None when no channel has one."""
    feedback_count: int
    newest_feedback_at: datetime
    features_D: Tensor | None
    """None when the label was withdrawn; only that fact is kept."""
    corrections: tuple[Tensor, ...] = ()
    """Features of the corrected answers."""
    over: tuple[str, ...] = ()
    """Episodes that this one was preferred to."""
    voters: tuple[str, ...] = ()
    """The people who gave it, as hashes: enough to see that two labels are of one person, and no more. Without a name: ``NAMELESS`` and the episode's
    hash, since nobody knows which of these labels are of one person."""
    predicted: float | None = None
    """Prediction of the model that was published before it was fitted on this episode. Kept when the label changes."""
    evidence: tuple[ChannelVerdict, ...] = ()
    """The channels' verdicts. A verdict without channels counts as thumbs."""
    ratings: tuple[int, ...] = ()
    """1 to 5, one per person, of people whose newest vote is a rating."""
    pair_weights: tuple[float, float] = (1.0, 1.0)
    """Weight of each correction and of each comparison."""
    vote_weight: float = 1.0
    """Inverse of how likely such a vote was, clipped (reward/trust/vote_propensity.py)."""
    adapter: str | None = None
    words: int = 0
    """Length of the answer."""
    language: str = "other"
    tenant: str = "default"
    said: str = ""
    """Question and answer, as a hash: enough to see that two labels are about the same words."""
    opening: str = ""
    """The first question and the first answer of its conversation, as a hash. Empty: not known."""
    erasures: int = 0
    """How often a person was erased from the label."""
    led: tuple[LedAnswer, ...] = ()
    """Earlier answers that its verdict reaches."""

    def __post_init__(self) -> None:
        if self.verdict is not None and not self.evidence:
            object.__setattr__(self, "evidence", ((Channel.THUMBS.value, self.verdict, 1.0),))

    @property
    def rank(self) -> tuple[int, datetime, int, float, int]:
        """Of two labels of an episode, the one with the higher rank is the later one."""
        return (
            self.erasures,
            self.newest_feedback_at,
            self.feedback_count,
            -1.0 if self.verdict is None else self.verdict,
            len(self.over) + len(self.corrections),
        )

    @property
    def weight(self) -> float:
        """Total weight of the channels' verdicts; a thumb has weight 1."""
        return sum(weight for _, _, weight in self.evidence)

    @property
    def by_people(self) -> bool:
        """True when a person gave a thumb or a rating. False for hints: signals, outcomes and critics."""
        return any(channel in BY_PEOPLE for channel, _, _ in self.evidence)

    @property
    def fold_key(self) -> str:
        """What decides its fold. Labels of one conversation, and labels about the same words, have one opening, and so are in one fold."""
        return self.opening or self.episode_id

    @property
    def nameless(self) -> bool:
        """True when none of its voters gave a name."""
        return bool(self.voters) and all(voter.startswith(NAMELESS) for voter in self.voters)

    @property
    def age(self) -> tuple[datetime, str]:
        """What sorts entries from the oldest to the newest."""
        return (self.newest_feedback_at, self.episode_id)

    @property
    def stratum(self) -> str:
        """The kind of entry, one of ``STRATA``."""
        if self.verdict is not None:
            return ("" if self.by_people else "hint ") + ("good" if is_good(self.verdict) else "bad")
        return "words" if self.features_D is not None else "withdrawn"

    def encode(self) -> bytes:
        """JSON, features as base64 of little-endian float16."""
        body: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        body["newest_feedback_at"] = self.newest_feedback_at.isoformat()
        body["features"] = None if self.features_D is None else _packed(self.features_D)
        body["corrections"] = [_packed(c) for c in self.corrections]
        body["led"] = [[each.said, each.weight, _packed(each.features_D)] for each in self.led]
        return json.dumps(body).encode()

    @classmethod
    def decode(cls, raw: bytes) -> "BufferEntry":
        """The inverse of ``encode``. Raises InvalidEvent on anything else."""
        try:
            stored: Any = _STORED.model_validate_json(raw)
            return cls(
                newest_feedback_at=stored.newest_feedback_at,
                features_D=None if stored.features is None else _unpacked(stored.features),
                corrections=tuple(_unpacked(c) for c in stored.corrections),
                led=tuple(LedAnswer(said, weight, _unpacked(features)) for said, weight, features in stored.led),
                **{name: getattr(stored, name) for name in _PLAIN},
            )
        except (ValueError, RecursionError) as error:
            raise InvalidEvent("invalid", f"an entry of the replay buffer cannot be read: {type(error).__name__}") from None


_PLAIN = ("episode_id", "verdict", "feedback_count", "over", "voters", "predicted", "evidence", "ratings", "pair_weights", "vote_weight", "adapter",
          "words", "language", "tenant", "said", "opening", "erasures")  # fmt: skip
_TYPES = get_type_hints(BufferEntry)
_FIELDS: dict[str, Any] = {name: (_TYPES[name], ...) for name in _PLAIN}
_STORED = create_model(
    "_STORED", __config__=ConfigDict(allow_inf_nan=False), newest_feedback_at=(AwareDatetime, ...), features=(str | None, ...),
    corrections=(tuple[str, ...], ...), led=(tuple[tuple[str, float, str], ...], ...), **_FIELDS,
)  # fmt: skip
"""The encoding, with the types of the fields above: what is read has them."""


def _packed(features_D: Tensor) -> str:
    return base64.b64encode(features_D.numpy().astype("<f2").tobytes()).decode()


def _unpacked(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2").astype(np.float16))
