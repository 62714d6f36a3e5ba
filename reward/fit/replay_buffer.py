"""The replay buffer: every label that counts now, by episode, with its features. Bounded. Its content decides the next refit.

It drops entries by rule: of each stratum (good, bad, hints, words only, withdrawn) the newest stay. What is kept depends on the labels, never on the
order in which they arrived, so two updaters that have read the same labels fit the same model.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward.fit.head_fit import RATINGS, FitPart, Rows
from reward.fit.label_evidence import ChannelVerdict, is_good
from reward.trust.voter_trust import critic_weight
from streams.core.errors import InvalidEvent
from streams.core.events import Channel

BUFFER_LAYOUT = 3
"""Increase it whenever an entry's encoding changes: the labels are then read again instead of entries that cannot be decoded."""
BY_PEOPLE = frozenset({Channel.THUMBS.value, Channel.RATINGS.value})
STRATA = ("good", "bad", "hint good", "hint bad", "words", "withdrawn")
FEATURE_LIMIT = 6e4
"""Features are stored in half precision, whose largest number is 65504."""


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
    """The people who gave it, as hashes: enough to see that two labels are of one person, and no more."""
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
    erasures: int = 0
    """How often a person was erased from the label."""

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
        return json.dumps(body).encode()

    @classmethod
    def decode(cls, raw: bytes) -> "BufferEntry":
        """The inverse of ``encode``. Raises InvalidEvent on anything else."""
        try:
            body = json.loads(raw)
            return cls(
                newest_feedback_at=datetime.fromisoformat(body["newest_feedback_at"]),
                features_D=None if body["features"] is None else _unpacked(body["features"]),
                corrections=tuple(_unpacked(c) for c in body["corrections"]),
                **{name: _tuples(body[name]) for name in _PLAIN},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidEvent("invalid", f"an entry of the replay buffer cannot be read: {type(error).__name__}") from None


_PLAIN = ("episode_id", "verdict", "feedback_count", "over", "voters", "predicted", "evidence", "ratings", "pair_weights", "vote_weight", "adapter",
          "words", "language", "tenant", "said", "erasures")  # fmt: skip


class ReplayBuffer:
    """The entries that count. ``add`` and ``remove`` return what changed, for the durable table."""

    def __init__(self, capacity: int, entries: Iterable[BufferEntry] = ()) -> None:
        self._capacity = capacity
        self._entries: dict[str, BufferEntry] = {}
        self.add(entries)

    def __contains__(self, episode_id: str) -> bool:
        return episode_id in self._entries

    def __getitem__(self, episode_id: str) -> BufferEntry:
        return self._entries[episode_id]

    def add(self, entries: Iterable[BufferEntry]) -> dict[str, BufferEntry | None]:
        """Add entries. Returns what to store, by episode; None where an entry is to be deleted."""
        changed: dict[str, BufferEntry | None] = {}
        for entry in entries:
            standing = self._entries.get(entry.episode_id)
            if standing is not None and standing.rank >= entry.rank:
                continue
            if standing is not None:  # the first prediction is the only one made without knowledge of any label of it
                entry = replace(entry, predicted=standing.predicted)
            self._entries[entry.episode_id] = changed[entry.episode_id] = entry
        for episode_id in self._beyond_capacity():
            del self._entries[episode_id]
            changed[episode_id] = None
        return changed

    def remove(self, episode_ids: Iterable[str]) -> dict[str, BufferEntry | None]:
        """Remove episodes whose label was deleted. Returns what to delete: all of them, since the durable table may hold more than the buffer."""
        for episode_id in (gone := dict.fromkeys(episode_ids)):
            self._entries.pop(episode_id, None)
        return gone

    def with_verdict(self, newest: int | None = None, people_only: bool = False) -> list[BufferEntry]:
        """Entries with a verdict: all, by episode id, or the ``newest`` ones, oldest first."""
        chosen = [e for e in self._entries.values() if e.verdict is not None and (e.by_people or not people_only)]
        if newest is None:
            return sorted(chosen, key=lambda e: e.episode_id)
        return sorted(chosen, key=_by_age)[-newest:]

    def counts(self) -> Counter[str]:
        """Number of entries in each stratum."""
        return Counter(entry.stratum for entry in self._entries.values())

    def newest_feedback_at(self) -> datetime | None:
        """Event time of the newest feedback in the buffer."""
        return max((e.newest_feedback_at for e in self._entries.values()), default=None)

    def rows(self) -> Rows:
        """The input of a refit. At least one entry must have a verdict."""
        thumbs = self.with_verdict()
        pairs = [pair for _, entry in sorted(self._entries.items()) for pair in self._pairs(entry)]
        features_ND = torch.stack([_known(e) for e in thumbs]).float()
        newer = {e.episode_id: n for n, e in enumerate(sorted(thumbs, key=_by_age, reverse=True))}
        none_PD = features_ND[:0]
        say = critic_weight([pair for entry in thumbs if (pair := _people_and_critic(entry)) is not None])
        return Rows(
            thumbs_ND=features_ND,
            verdicts_N=torch.tensor([e.verdict for e in thumbs], dtype=torch.float32),
            weights_N=torch.tensor([e.vote_weight if e.by_people else 1.0 for e in thumbs], dtype=torch.float32),
            trust_N=torch.ones(len(thumbs)),
            parts=[parts_of(e, say) for e in thumbs],
            episodes=[e.episode_id for e in thumbs],
            voters=[e.voters for e in thumbs],
            newer_N=torch.tensor([newer[e.episode_id] for e in thumbs]),
            better_PD=torch.stack([pair.better_D for pair in pairs]) if pairs else none_PD,
            worse_PD=torch.stack([pair.worse_D for pair in pairs]) if pairs else none_PD,
            pair_weights_P=torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
            pair_episodes=[pair.episode_id for pair in pairs],
        )

    def _pairs(self, entry: BufferEntry) -> "list[_Pair]":
        """Pairs of answers whose features are both known."""
        if entry.features_D is None:
            return []
        others = [self._entries[i] for i in entry.over if i in self._entries]
        own_D, (correction, comparison) = _known(entry).float(), entry.pair_weights
        return [_Pair(entry.episode_id, c.float(), own_D, correction) for c in entry.corrections] + [
            _Pair(entry.episode_id, own_D, _known(other).float(), comparison) for other in others if other.features_D is not None
        ]

    def _beyond_capacity(self) -> list[str]:
        strata: dict[str, list[BufferEntry]] = {name: [] for name in STRATA}
        for entry in self._entries.values():
            strata[entry.stratum].append(entry)
        # Hints are many; they have a capacity of their own, so that they never displace people's labels.
        room = dict.fromkeys(STRATA, self._capacity)
        for kind, capacity in (("", self._capacity), ("hint ", max(2, self._capacity // 2))):
            half = capacity // 2
            room[f"{kind}good"] = capacity - min(len(strata[f"{kind}bad"]), capacity - half)
            room[f"{kind}bad"] = capacity - min(len(strata[f"{kind}good"]), half)
        return [e.episode_id for name, entries in strata.items() if len(entries) > room[name] for e in sorted(entries, key=_by_age)[: -room[name]]]


@dataclass(frozen=True)
class _Pair:
    """One answer that a person preferred to another."""

    episode_id: str
    better_D: Tensor
    worse_D: Tensor
    weight: float


def parts_of(entry: BufferEntry, critic_weight: float = 1.0) -> tuple[FitPart, ...]:
    """The statements of an entry: how good the answer is, and for each rating which levels it exceeds. ``critic_weight`` scales a critic's
    verdict."""
    said = [
        (value, weight * critic_weight if channel == Channel.CRITIC else weight)
        for channel, value, weight in entry.evidence
        if channel != Channel.RATINGS
    ]
    weight = sum(w for _, w in said)
    parts = [FitPart(sum(value * w for value, w in said) / weight, weight)] if weight else []
    rating_weight = sum(w for channel, _, w in entry.evidence if channel == Channel.RATINGS)
    levels = len(entry.ratings) * (RATINGS - 1)
    return (*parts, *(FitPart(float(r > k), rating_weight / levels, level=k) for r in entry.ratings if rating_weight for k in range(1, RATINGS)))


def _people_and_critic(entry: BufferEntry) -> tuple[float, float] | None:
    """The people's verdict and the critic's on one answer. None unless there are both."""
    people = [(value, weight) for channel, value, weight in entry.evidence if channel in (Channel.THUMBS, Channel.RATINGS)]
    critic = [value for channel, value, _ in entry.evidence if channel == Channel.CRITIC]
    if not people or not critic:
        return None
    return sum(value * weight for value, weight in people) / sum(weight for _, weight in people), critic[0]


def _by_age(entry: BufferEntry) -> tuple[datetime, str]:
    return (entry.newest_feedback_at, entry.episode_id)


def _known(entry: BufferEntry) -> Tensor:
    if entry.features_D is None:
        raise ValueError(f"entry {entry.episode_id} was withdrawn and has no features")
    return entry.features_D


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _packed(features_D: Tensor) -> str:
    return base64.b64encode(features_D.numpy().astype("<f2").tobytes()).decode()


def _unpacked(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2").astype(np.float16))
