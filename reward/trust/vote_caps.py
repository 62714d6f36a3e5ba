"""Against crowds that are not what they seem: one person, one network, one hour, one text again and again, accounts made yesterday.

Shapes: ``N`` rows, each a label with a verdict or a pair (one answer preferred to another); a pair is its entry's, who gave it, where and when. All
rules look at what is in the buffer alone, so they are as independent of order as the buffer is, and a rebuilt version comes out the same. Where
nothing stands out they change nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reward.fit.head_fit import Rows
from reward.fit.replay_buffer import BufferEntry, ReplayBuffer
from reward.settings import RewardSettings
from reward.trust.voter_trust import averaging_one, capped

RULES = ("person", "tenant", "hour", "repeated", "newcomer")


def capped_rows(buffer: ReplayBuffer, settings: RewardSettings) -> tuple[Rows, dict[str, float]]:
    """The buffer's rows, each of both kinds held to its share among its kind; and what part of all their weight each rule moved."""
    rows = buffer.rows()
    labels, pairs = ([buffer[episode_id] for episode_id in episodes] for episodes in (rows.episodes, rows.pair_episodes))
    given = Counter(person for entry in {entry.episode_id: entry for entry in [*labels, *pairs]}.values() for person in entry.voters)
    of_labels, of_pairs = (caps(entries, settings, given) for entries in (labels, pairs))
    moved = {rule: float((1 - torch.cat([of_labels[rule], of_pairs[rule]])).clamp(min=0).mean()) for rule in RULES}
    return replace(rows, weights_N=rows.weights_N * together(of_labels), pair_weights_P=rows.pair_weights_P * together(of_pairs)), moved


def caps(entries: Sequence[BufferEntry], settings: RewardSettings, given: Mapping[str, int]) -> dict[str, Tensor]:
    """Weights ``[N]`` of the rows of these entries by each of the ``RULES`` alone; they average 1. ``given``: how many labels each person gave."""
    return {
        "person": capped([entry.voters for entry in entries], settings.person_share),
        "tenant": capped([(entry.tenant,) for entry in entries], settings.tenant_share),
        "hour": capped([(f"{entry.tenant} {entry.newest_feedback_at:%Y-%m-%dT%H}",) for entry in entries], settings.hour_share),
        "repeated": averaging_one(_once(entries)),
        "newcomer": averaging_one(_known(entries, settings.newcomer_labels, given)),
    }


def together(by_rule: Mapping[str, Tensor]) -> Tensor:
    """Weights ``[N]`` under all rules; they average 1."""
    return averaging_one(torch.stack(list(by_rule.values())).prod(0))


def largest_share(voters: Sequence[Sequence[str]], weights_N: Tensor) -> float | None:
    """The largest part of the labels' weight that any one person holds; None where nobody is named."""
    held: dict[str, float] = defaultdict(float)
    for people, weight in zip(voters, weights_N.tolist(), strict=True):
        for person in people:
            held[person] += weight / len(people)
    return min(1.0, max(held.values()) / float(weights_N.sum())) if held else None  # sums of rounded weights may end a hair above 1


def _once(entries: Sequence[BufferEntry]) -> Tensor:
    """The same people on the same words count together as one label, however many pairs it holds."""
    said = {entry.episode_id: (entry.voters, entry.said) if entry.said and entry.voters else entry.episode_id for entry in entries}
    times = Counter(said.values())
    return torch.tensor([1 / times[said[entry.episode_id]] for entry in entries])


def _known(entries: Sequence[BufferEntry], enough: int, given: Mapping[str, int]) -> Tensor:
    """Whoever has given fewer labels than ``enough`` counts in proportion; a label of several people as their mean."""
    shares = [[min(1.0, given[person] / enough) for person in entry.voters] for entry in entries]
    return torch.tensor([sum(each) / len(each) if each else 1.0 for each in shares])
