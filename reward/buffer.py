"""The replay buffer: every label that counts now, by episode, with its features. Bounded; its content decides the next refit.

It forgets by rule, not by accident: of each stratum (good, bad, words only, withdrawn) the newest stay. What is kept depends on the
labels, never on the order in which they came; so two updaters that have seen the same labels fit the same model.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward.features import Features
from reward.fit import Rows
from streams.errors import InvalidEvent
from streams.events import FeedbackKind, Label

LAYOUT = 1
"""Raised whenever an entry's encoding changes: the labels are then read again instead of entries that we cannot read."""
FEATURE_LIMIT = 6e4
"""Features are kept in half precision, which ends at 65504."""


@dataclass(frozen=True)
class Entry:
    """One episode's label as the refit needs it. ``D`` features, half precision."""

    episode_id: str
    verdict: float | None
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

    @property
    def rank(self) -> tuple[datetime, int, float, int]:
        """Of two labels of an episode, the one of higher rank is the later."""
        return (self.newest_feedback_at, self.feedback_count, -1.0 if self.verdict is None else self.verdict, len(self.over) + len(self.corrections))

    @property
    def stratum(self) -> str:
        """Which of the four kinds of entry this is."""
        if self.verdict is not None:
            return "good" if self.verdict >= 0.5 else "bad"
        return "words" if self.features_D is not None else "withdrawn"

    def encode(self) -> bytes:
        """JSON, features as base64 of little-endian float16."""
        body: dict[str, Any] = {
            "episode_id": self.episode_id,
            "verdict": self.verdict,
            "feedback_count": self.feedback_count,
            "newest_feedback_at": self.newest_feedback_at.isoformat(),
            "features": None if self.features_D is None else _packed(self.features_D),
            "corrections": [_packed(c) for c in self.corrections],
            "over": self.over,
            "voters": self.voters,
            "predicted": self.predicted,
        }
        return json.dumps(body).encode()

    @classmethod
    def decode(cls, raw: bytes) -> "Entry":
        """The inverse of ``encode``. Raises InvalidEvent on anything else."""
        try:
            body = json.loads(raw)
            return cls(
                episode_id=body["episode_id"],
                verdict=body["verdict"],
                feedback_count=body["feedback_count"],
                newest_feedback_at=datetime.fromisoformat(body["newest_feedback_at"]),
                features_D=None if body["features"] is None else _unpacked(body["features"]),
                corrections=tuple(_unpacked(c) for c in body["corrections"]),
                over=tuple(body["over"]),
                voters=tuple(body["voters"]),
                predicted=body["predicted"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidEvent("invalid", f"an entry of the replay buffer cannot be read: {type(error).__name__}") from None


def entry_of(label: Label, features: Features, predict: Callable[[Tensor], float | None]) -> Entry:
    """The entry of a label; ``predict`` says what the model of the day makes of features ``[D]``."""
    corrections = [vote.text for vote in label.votes if vote.kind is FeedbackKind.CORRECTION and vote.text]
    over = tuple(vote.over for vote in label.votes if vote.kind is FeedbackKind.COMPARISON and vote.over)
    voters = tuple(sorted({hashlib.sha256(vote.user_id.encode()).hexdigest()[:16] for vote in label.votes}))
    bare = Entry(label.episode_id, label.verdict, len(label.feedback_ids), label.newest_feedback_at, None, voters=voters)
    if label.verdict is None and not corrections and not over:
        return bare
    features_ND = features.features([(label.messages, answer) for answer in (label.answer, *corrections)]).clamp(-FEATURE_LIMIT, FEATURE_LIMIT).half()
    return replace(bare, features_D=features_ND[0], corrections=tuple(features_ND[1:]), over=over, predicted=predict(features_ND[0].float()))


class ReplayBuffer:
    """The entries that count. ``take`` reports what changed, for whoever keeps them durably."""

    def __init__(self, capacity: int, entries: Iterable[Entry] = ()) -> None:
        self._capacity = capacity
        self._entries: dict[str, Entry] = {}
        self.take(entries)

    def __contains__(self, episode_id: str) -> bool:
        return episode_id in self._entries

    def take(self, entries: Iterable[Entry]) -> dict[str, Entry | None]:
        """Take entries in; returns what to store by episode, None where an entry is to be deleted."""
        changed: dict[str, Entry | None] = {}
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

    def with_verdict(self, newest: int | None = None) -> list[Entry]:
        """Entries that have a verdict: by episode id, or the so many newest, oldest first."""
        chosen = [e for e in self._entries.values() if e.verdict is not None]
        if newest is None:
            return sorted(chosen, key=lambda e: e.episode_id)
        return sorted(chosen, key=_by_age)[-newest:]

    def count(self, stratum: str) -> int:
        """Entries of a stratum."""
        return sum(entry.stratum == stratum for entry in self._entries.values())

    def newest_feedback_at(self) -> datetime | None:
        """Event time of the newest feedback in the buffer."""
        return max((e.newest_feedback_at for e in self._entries.values()), default=None)

    def rows(self) -> Rows:
        """What a refit is given; at least one entry must have a verdict."""
        thumbs = self.with_verdict()
        pairs = [pair for _, entry in sorted(self._entries.items()) for pair in self._pairs(entry)]
        features_ND = torch.stack([_known(e) for e in thumbs])
        newer = {e.episode_id: n for n, e in enumerate(sorted(thumbs, key=_by_age, reverse=True))}
        none_PD = features_ND[:0]
        return Rows(
            thumbs_ND=features_ND,
            verdicts_N=torch.tensor([e.verdict for e in thumbs], dtype=torch.float32),
            weights_N=torch.ones(len(thumbs)),
            episodes=[e.episode_id for e in thumbs],
            voters=[e.voters for e in thumbs],
            newer_N=torch.tensor([newer[e.episode_id] for e in thumbs]),
            better_PD=torch.stack([better for _, better, _ in pairs]) if pairs else none_PD,
            worse_PD=torch.stack([worse for _, _, worse in pairs]) if pairs else none_PD,
            pair_weights_P=torch.ones(len(pairs)),
            pair_episodes=[episode_id for episode_id, _, _ in pairs],
        )

    def _pairs(self, entry: Entry) -> list[tuple[str, Tensor, Tensor]]:
        """(episode, better, worse) where the features of both answers are known."""
        if entry.features_D is None:
            return []
        others = [self._entries[i] for i in entry.over if i in self._entries]
        return [(entry.episode_id, c.float(), _known(entry)) for c in entry.corrections] + [
            (entry.episode_id, _known(entry), _known(other)) for other in others if other.features_D is not None
        ]

    def _beyond_capacity(self) -> list[str]:
        strata: dict[str, list[Entry]] = {"good": [], "bad": [], "words": [], "withdrawn": []}
        for entry in self._entries.values():
            strata[entry.stratum].append(entry)
        half = self._capacity // 2
        room = {
            "good": self._capacity - min(len(strata["bad"]), self._capacity - half),
            "bad": self._capacity - min(len(strata["good"]), half),
            "words": self._capacity,
            "withdrawn": self._capacity,
        }
        return [e.episode_id for name, entries in strata.items() if len(entries) > room[name] for e in sorted(entries, key=_by_age)[: -room[name]]]


def _by_age(entry: Entry) -> tuple[datetime, str]:
    return (entry.newest_feedback_at, entry.episode_id)


def _known(entry: Entry) -> Tensor:
    if entry.features_D is None:
        raise ValueError(f"entry {entry.episode_id} was withdrawn and has no features")
    return entry.features_D.float()


def _packed(features_D: Tensor) -> str:
    return base64.b64encode(features_D.numpy().astype("<f2").tobytes()).decode()


def _unpacked(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2").astype(np.float16))
