"""The replay buffer: every label that counts now, by episode, with its features. Bounded. Its content decides the next refit.

Each partition of the labels has a reservoir of its own (reservoir.py), which takes labels in one by one. Kafka keeps the order within a partition and
no other, so what is kept depends on the log alone: not on how labels were batched, nor on which partition was read first. An updater and a rebuild
from the lake keep the same labels, bit for bit, also when the buffer is full.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import torch
from torch import Tensor

from reward.fit.buffer_entry import BY_PEOPLE, BufferEntry, LedAnswer
from reward.fit.head_fit import RATINGS, FitPart, Rows
from reward.fit.reservoir import Reservoir, kind_of
from reward.trust.voter_trust import critic_weight
from streams.core.events import Channel
from streams.kafka.partitioning import partition_of


class ReplayBuffer:
    """The entries that count. ``add`` and ``remove`` return what changed, for the durable table."""

    def __init__(self, capacity: int, entries: Iterable[BufferEntry] = (), person_share: float = 1.0, partitions: int = 1) -> None:
        """``capacity``: people's labels; ``partitions`` of the labels' topic."""
        self._reservoirs = [Reservoir(room, person_share) for room in _rooms(capacity, partitions)]
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
            for episode_id in self._reservoir(entry.episode_id).add(entry):
                del self._entries[episode_id]
                changed[episode_id] = None
        return changed

    def remove(self, episode_ids: Iterable[str]) -> dict[str, BufferEntry | None]:
        """Remove episodes whose label was deleted. Returns what to delete: all of them, since the durable table may hold more than the buffer."""
        for episode_id in (gone := dict.fromkeys(episode_ids)):
            if self._entries.pop(episode_id, None) is not None:
                self._reservoir(episode_id).remove(episode_id)
        return gone

    def entries(self) -> list[BufferEntry]:
        """All entries, by episode id."""
        return [entry for _, entry in sorted(self._entries.items())]

    def with_verdict(self, newest: int | None = None, people_only: bool = False) -> list[BufferEntry]:
        """Entries with a verdict: all, by episode id, or the ``newest`` ones, oldest first."""
        chosen = [e for e in self._entries.values() if e.verdict is not None and (e.by_people or not people_only)]
        if newest is None:
            return sorted(chosen, key=lambda e: e.episode_id)
        return sorted(chosen, key=lambda e: e.age)[-newest:]

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
        newer = {e.episode_id: n for n, e in enumerate(sorted(thumbs, key=lambda e: e.age, reverse=True))}
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
            complete_N=self._complete(thumbs),
            better_PD=torch.stack([pair.better_D for pair in pairs]) if pairs else none_PD,
            worse_PD=torch.stack([pair.worse_D for pair in pairs]) if pairs else none_PD,
            pair_weights_P=torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
            pair_episodes=[pair.episode_id for pair in pairs],
            fold_keys=[e.fold_key for e in thumbs],
            pair_fold_keys=[self._entries[pair.episode_id].fold_key for pair in pairs],
        )

    def with_led(self, rows: Rows) -> Rows:
        """The rows, then one for each earlier answer that a verdict of people reaches, by the same people and as part of the same label.

        An answer with a verdict of its own keeps that one. One that several verdicts reach takes the nearest: the one with the most weight.
        """
        own = {e.said for e in self.with_verdict(people_only=True)}
        weights = dict(zip(rows.episodes, rows.weights_N.tolist(), strict=True))
        found: dict[str, tuple[BufferEntry, LedAnswer]] = {}
        for entry in sorted((self._entries[name] for name in rows.episodes), key=lambda e: e.age):
            for each in entry.led:
                if each.said not in own and (each.said not in found or found[each.said][1].weight <= each.weight):
                    found[each.said] = (entry, each)
        if not found:
            return rows
        led = [found[said] for said in sorted(found)]
        numbers = {name: n for n, name in enumerate(rows.episodes)}
        of_L = torch.tensor([numbers[entry.episode_id] for entry, _ in led])
        verdicts = [people_verdict(entry) for entry, _ in led]
        return replace(
            rows,
            thumbs_ND=torch.cat([rows.thumbs_ND, torch.stack([each.features_D.float() for _, each in led])]),
            verdicts_N=torch.cat([rows.verdicts_N, torch.tensor([value for value, _ in verdicts], dtype=torch.float32)]),
            weights_N=torch.cat([rows.weights_N, torch.tensor([weights[entry.episode_id] for entry, _ in led], dtype=torch.float32)]),
            trust_N=torch.cat([rows.trust_N, rows.trust_N[of_L]]),
            parts=[*rows.parts, *((FitPart(value, weight * each.weight),) for (value, weight), (_, each) in zip(verdicts, led, strict=True))],
            episodes=[*rows.episodes, *(entry.episode_id for entry, _ in led)],
            voters=[*rows.voters, *(entry.voters for entry, _ in led)],
            newer_N=torch.cat([rows.newer_N, rows.newer_N[of_L]]),
            complete_N=torch.cat([rows.complete_N, torch.zeros(len(led), dtype=torch.float64)]),  # they do not say how many answers are good
            fold_keys=[*rows.fold_keys, *(entry.fold_key for entry, _ in led)],
        )

    def _complete(self, entries: Sequence[BufferEntry]) -> Tensor:
        """1 for entries from the time in which their reservoir kept everything of their kind, otherwise 0; float64 ``[N]``."""
        since = {(number, kind): reservoir.complete_since(kind) for number, reservoir in enumerate(self._reservoirs) for kind in ("", "hint")}
        begins = [since[self._partition(entry.episode_id), kind_of(entry.stratum)] for entry in entries]
        kept = [begin is None or entry.newest_feedback_at >= begin for entry, begin in zip(entries, begins, strict=True)]
        return torch.tensor(kept, dtype=torch.float64)

    def _pairs(self, entry: BufferEntry) -> "list[_Pair]":
        """Pairs of answers whose features are both known.

        The pairs of one person about one answer together weigh as one label: a ranking of many answers is one judgement (Ouyang et al. 2022,
        section 3.5, weigh the pairs of one ranking the same way).
        """
        if entry.features_D is None:
            return []
        others = [self._entries[i] for i in entry.over if i in self._entries]
        own_D, (correction, comparison) = _known(entry).float(), entry.pair_weights
        corrected = [(c.float(), own_D) for c in entry.corrections]
        compared = [(own_D, _known(other).float()) for other in others if other.features_D is not None]
        return [
            _Pair(entry.episode_id, better_D, worse_D, weight * min(1.0, max(1, len(entry.voters)) / len(pairs)))
            for pairs, weight in ((corrected, correction), (compared, comparison))
            for better_D, worse_D in pairs
        ]

    def _reservoir(self, episode_id: str) -> Reservoir:
        return self._reservoirs[self._partition(episode_id)]

    def _partition(self, episode_id: str) -> int:
        return partition_of(episode_id.encode(), len(self._reservoirs))


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


def people_verdict(entry: BufferEntry) -> tuple[float, float]:
    """The verdict of thumbs and ratings together, and its weight. The entry has one."""
    said = [(value, weight) for channel, value, weight in entry.evidence if channel in BY_PEOPLE]
    weight = sum(weight for _, weight in said)
    return sum(value * weight for value, weight in said) / weight, weight


def _people_and_critic(entry: BufferEntry) -> tuple[float, float] | None:
    """The people's verdict and the critic's on one answer. None unless there are both."""
    people = [(value, weight) for channel, value, weight in entry.evidence if channel in (Channel.THUMBS, Channel.RATINGS)]
    critic = [value for channel, value, _ in entry.evidence if channel == Channel.CRITIC]
    if not people or not critic:
        return None
    return sum(value * weight for value, weight in people) / sum(weight for _, weight in people), critic[0]


def _known(entry: BufferEntry) -> Tensor:
    if entry.features_D is None:
        raise ValueError(f"entry {entry.episode_id} was withdrawn and has no features")
    return entry.features_D


def _rooms(capacity: int, partitions: int) -> list[int]:
    """The capacity, dealt to the partitions."""
    return [max(2, capacity // partitions + (partition < capacity % partitions)) for partition in range(partitions)]
