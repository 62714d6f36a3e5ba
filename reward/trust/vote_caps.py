"""Caps on votes, against sock puppets and bursts: the weight of one person, one tenant, one hour, one repeated text, and of new accounts.

Shapes: ``N`` rows, each a label with a verdict or a pair (one answer preferred to another); a pair has the people, tenant and time of its entry. All
rules use the buffer's content alone, so they do not depend on order either, and a rebuilt version is the same. Votes without unusual concentration
are not changed.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reward.fit.head_fit import Rows
from reward.fit.replay_buffer import BufferEntry, ReplayBuffer
from reward.settings import RewardSettings
from reward.trust.voter_trust import mean_one, share_capped

RULES = ("person", "tenant", "hour", "repeated", "newcomer")


def capped_rows(buffer: ReplayBuffer, settings: RewardSettings) -> tuple[Rows, dict[str, float]]:
    """The buffer's rows with capped weights, labels and pairs each among their kind; and the part of all weight that each rule moved."""
    rows = buffer.rows()
    labels, pairs = ([buffer[episode_id] for episode_id in episodes] for episodes in (rows.episodes, rows.pair_episodes))
    given = Counter(person for entry in {entry.episode_id: entry for entry in [*labels, *pairs]}.values() for person in entry.voters)
    of_labels, of_pairs = (weights_by_rule(entries, settings, given) for entries in (labels, pairs))
    moved = {rule: float((1 - torch.cat([of_labels[rule], of_pairs[rule]])).clamp(min=0).mean()) for rule in RULES}
    return replace(
        rows, weights_N=rows.weights_N * combined_weights(of_labels), pair_weights_P=rows.pair_weights_P * combined_weights(of_pairs)
    ), moved


def weights_by_rule(entries: Sequence[BufferEntry], settings: RewardSettings, given: Mapping[str, int]) -> dict[str, Tensor]:
    """Weights ``[N]`` (mean 1) of these entries by each of the ``RULES`` alone. ``given``: number of labels by person."""
    return {
        "person": share_capped([entry.voters for entry in entries], settings.person_share),
        "tenant": share_capped([(entry.tenant,) for entry in entries], settings.tenant_share),
        "hour": share_capped([(f"{entry.tenant} {entry.newest_feedback_at:%Y-%m-%dT%H}",) for entry in entries], settings.hour_share),
        "repeated": mean_one(_repeated_weights(entries)),
        "newcomer": mean_one(_newcomer_weights(entries, settings.newcomer_labels, given)),
    }


def combined_weights(by_rule: Mapping[str, Tensor]) -> Tensor:
    """Weights ``[N]`` (mean 1) under all rules together."""
    return mean_one(torch.stack(list(by_rule.values())).prod(0))


def largest_share(voters: Sequence[Sequence[str]], weights_N: Tensor) -> float | None:
    """Largest part of the labels' weight that one person holds. None when no person is named."""
    held: dict[str, float] = defaultdict(float)
    for people, weight in zip(voters, weights_N.tolist(), strict=True):
        for person in people:
            held[person] += weight / len(people)
    return min(1.0, max(held.values()) / float(weights_N.sum())) if held else None  # sums of rounded weights may end a hair above 1


def _repeated_weights(entries: Sequence[BufferEntry]) -> Tensor:
    """The same people on the same question and answer count as one label together, however many pairs it has."""
    said = {entry.episode_id: (entry.voters, entry.said) if entry.said and entry.voters else entry.episode_id for entry in entries}
    times = Counter(said.values())
    return torch.tensor([1 / times[said[entry.episode_id]] for entry in entries])


def _newcomer_weights(entries: Sequence[BufferEntry], enough: int, given: Mapping[str, int]) -> Tensor:
    """People with fewer labels than ``enough`` count in proportion; a label of several people counts as their mean."""
    shares = [[min(1.0, given[person] / enough) for person in entry.voters] for entry in entries]
    return torch.tensor([sum(each) / len(each) if each else 1.0 for each in shares])
