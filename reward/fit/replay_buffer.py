"""The replay buffer: every label that counts now, by episode, with its features. Bounded; its content decides the next refit.

It forgets by rule, not by accident: of each stratum (good, bad, hints, words only, withdrawn) the newest stay. What is kept depends on the
labels, never on the order in which they came; so two updaters that have seen the same labels fit the same model.
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
from reward.fit.label_evidence import Said, is_good
from reward.trust.voter_trust import critics_say
from streams.core.errors import InvalidEvent
from streams.core.events import Channel

BUFFER_LAYOUT = 3
"""Raised whenever an entry's encoding changes: the labels are then read again instead of entries that we cannot read."""
BY_PEOPLE = frozenset({Channel.THUMBS.value, Channel.RATINGS.value})
STRATA = ("good", "bad", "hint good", "hint bad", "words", "withdrawn")
FEATURE_LIMIT = 6e4
"""Features are kept in half precision, which ends at 65504."""


@dataclass(frozen=True)
class BufferEntry:
    """One episode's label as the refit needs it. ``D`` features, half precision."""

    episode_id: str
    verdict: float | None
    """Mean of what the channels say by their weights; none when nothing says how good the answer is."""
    feedback_count: int
    newest_feedback_at: datetime
    features_D: Tensor | None
    """None when the label was withdrawn: only that it was is remembered."""
    corrections: tuple[Tensor, ...] = ()
    """Features of the answers that people would have had instead."""
    over: tuple[str, ...] = ()
    """Episodes that this one was preferred to."""
    voters: tuple[str, ...] = ()
    """Who said so, as hashes: enough to see that two labels are of one person, and no more."""
    predicted: float | None = None
    """What the model of the day said before it was fitted on this episode; kept when the label changes."""
    evidence: tuple[Said, ...] = ()
    """What makes up the verdict; a bare verdict counts as thumbs."""
    ratings: tuple[int, ...] = ()
    """1 to 5, one a person, of those whose newest word is a rating."""
    pair_weights: tuple[float, float] = (1.0, 1.0)
    """What each correction and each comparison weighs."""
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
    """How often somebody was erased from the label."""

    def __post_init__(self) -> None:
        if self.verdict is not None and not self.evidence:
            object.__setattr__(self, "evidence", ((Channel.THUMBS.value, self.verdict, 1.0),))

    @property
    def rank(self) -> tuple[int, datetime, int, float, int]:
        """Of two labels of an episode, the one of higher rank is the later."""
        return (
            self.erasures,
            self.newest_feedback_at,
            self.feedback_count,
            -1.0 if self.verdict is None else self.verdict,
            len(self.over) + len(self.corrections),
        )

    @property
    def weight(self) -> float:
        """What all that is said about how good the answer is weighs, beside a thumb at 1."""
        return sum(weight for _, _, weight in self.evidence)

    @property
    def by_people(self) -> bool:
        """True when somebody gave a thumb or a rating, false for hints: signals, outcomes and critics."""
        return any(channel in BY_PEOPLE for channel, _, _ in self.evidence)

    @property
    def stratum(self) -> str:
        """Which kind of entry this is."""
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
    """The entries that count. ``take`` reports what changed, for whoever keeps them durably."""

    def __init__(self, capacity: int, entries: Iterable[BufferEntry] = ()) -> None:
        self._capacity = capacity
        self._entries: dict[str, BufferEntry] = {}
        self.take(entries)

    def __contains__(self, episode_id: str) -> bool:
        return episode_id in self._entries

    def __getitem__(self, episode_id: str) -> BufferEntry:
        return self._entries[episode_id]

    def take(self, entries: Iterable[BufferEntry]) -> dict[str, BufferEntry | None]:
        """Take entries in; returns what to store by episode, None where an entry is to be deleted."""
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

    def forget(self, episode_ids: Iterable[str]) -> dict[str, BufferEntry | None]:
        """These episodes have no label any more; returns what to delete, which is all of them: what is kept elsewhere may be more."""
        for episode_id in (gone := dict.fromkeys(episode_ids)):
            self._entries.pop(episode_id, None)
        return gone

    def with_verdict(self, newest: int | None = None, people_only: bool = False) -> list[BufferEntry]:
        """Entries that have a verdict: by episode id, or the so many newest, oldest first."""
        chosen = [e for e in self._entries.values() if e.verdict is not None and (e.by_people or not people_only)]
        if newest is None:
            return sorted(chosen, key=lambda e: e.episode_id)
        return sorted(chosen, key=_by_age)[-newest:]

    def counts(self) -> Counter[str]:
        """How many entries each stratum has."""
        return Counter(entry.stratum for entry in self._entries.values())

    def newest_feedback_at(self) -> datetime | None:
        """Event time of the newest feedback in the buffer."""
        return max((e.newest_feedback_at for e in self._entries.values()), default=None)

    def rows(self) -> Rows:
        """What a refit is given; at least one entry must have a verdict."""
        thumbs = self.with_verdict()
        pairs = [pair for _, entry in sorted(self._entries.items()) for pair in self._pairs(entry)]
        features_ND = torch.stack([_known(e) for e in thumbs]).float()
        newer = {e.episode_id: n for n, e in enumerate(sorted(thumbs, key=_by_age, reverse=True))}
        none_PD = features_ND[:0]
        say = critics_say([pair for entry in thumbs if (pair := _people_and_critic(entry)) is not None])
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
        """Pairs where the features of both answers are known."""
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
        # Hints come by themselves and in numbers; they have room of their own, so that they never push out what people said.
        room = dict.fromkeys(STRATA, self._capacity)
        for kind, capacity in (("", self._capacity), ("hint ", max(2, self._capacity // 2))):
            half = capacity // 2
            room[f"{kind}good"] = capacity - min(len(strata[f"{kind}bad"]), capacity - half)
            room[f"{kind}bad"] = capacity - min(len(strata[f"{kind}good"]), half)
        return [e.episode_id for name, entries in strata.items() if len(entries) > room[name] for e in sorted(entries, key=_by_age)[: -room[name]]]


@dataclass(frozen=True)
class _Pair:
    """One answer that was preferred to another."""

    episode_id: str
    better_D: Tensor
    worse_D: Tensor
    weight: float


def parts_of(entry: BufferEntry, critics_say: float = 1.0) -> tuple[FitPart, ...]:
    """What an entry teaches: how good the answer is, and for each rating above which levels it lies. A critic's word counts by its say."""
    said = [
        (value, weight * critics_say if channel == Channel.CRITIC else weight)
        for channel, value, weight in entry.evidence
        if channel != Channel.RATINGS
    ]
    weight = sum(w for _, w in said)
    parts = [FitPart(sum(value * w for value, w in said) / weight, weight)] if weight else []
    rating_weight = sum(w for channel, _, w in entry.evidence if channel == Channel.RATINGS)
    levels = len(entry.ratings) * (RATINGS - 1)
    return (*parts, *(FitPart(float(r > k), rating_weight / levels, level=k) for r in entry.ratings if rating_weight for k in range(1, RATINGS)))


def _people_and_critic(entry: BufferEntry) -> tuple[float, float] | None:
    """What people and what the critic said of one answer; none unless both did."""
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
