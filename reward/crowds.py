"""Against crowds that are not what they seem: one network, one hour, one text again and again, accounts made yesterday. Beside each person's cap.

Shapes: ``N`` labels. All rules look at the labels in the buffer alone, so they are as independent of order as the buffer is, and a rebuilt
version comes out the same. Where nothing stands out they change nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from reward.buffer import Entry
from reward.settings import RewardSettings
from reward.voters import capped


def crowd_weights(entries: Sequence[Entry], settings: RewardSettings) -> Tensor:
    """Weights ``[N]`` of the labels by where, when and how often such words came; they average 1."""
    networks = [(entry.tenant,) for entry in entries]
    hours = [(f"{entry.tenant} {entry.newest_feedback_at:%Y-%m-%dT%H}",) for entry in entries]
    weights_N = (
        capped(networks, settings.tenant_share) * capped(hours, settings.hour_share) * _once(entries) * _known(entries, settings.newcomer_labels)
    )
    return weights_N / weights_N.mean() if len(weights_N) else weights_N


def largest_share(voters: Sequence[Sequence[str]], weights_N: Tensor) -> float | None:
    """The largest part of the labels' weight that any one person holds; None where nobody is named."""
    held: dict[str, float] = defaultdict(float)
    for people, weight in zip(voters, weights_N.tolist(), strict=True):
        for person in people:
            held[person] += weight / len(people)
    return min(1.0, max(held.values()) / float(weights_N.sum())) if held else None  # sums of rounded weights may end a hair above 1


def _once(entries: Sequence[Entry]) -> Tensor:
    """The same people on the same words count together as one label."""
    said = [(entry.voters, entry.said) if entry.said and entry.voters else entry.episode_id for entry in entries]
    times = Counter(said)
    return torch.tensor([1 / times[each] for each in said])


def _known(entries: Sequence[Entry], enough: int) -> Tensor:
    """Whoever has given fewer labels than ``enough`` counts in proportion; a label of several people as their mean."""
    given = Counter(person for entry in entries for person in entry.voters)
    shares = [[min(1.0, given[person] / enough) for person in entry.voters] for entry in entries]
    return torch.tensor([sum(each) / len(each) if each else 1.0 for each in shares])
