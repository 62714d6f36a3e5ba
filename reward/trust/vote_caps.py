"""Caps on votes, against sock puppets and bursts: the weight of one person, one tenant, one hour, one repeated text, of new accounts and of no name.

Shapes: ``N`` rows, each a label with a verdict or a pair (one answer preferred to another); a pair has the people, tenant and time of its entry. All
rules use the buffer's content alone, so they do not depend on order either, and a rebuilt version is the same. Votes without unusual concentration
are not changed. The cap on a person comes last, on what the other rules leave, so that it holds whatever they do (person_share_cap.py).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reward.fit.buffer_entry import BufferEntry
from reward.fit.head_fit import Rows
from reward.fit.replay_buffer import ReplayBuffer
from reward.settings import RewardSettings
from reward.trust.person_share_cap import held_by_person, largest_share, row_factors, share_factors
from reward.trust.voter_trust import mean_one, share_capped

RULES = ("person", "tenant", "hour", "repeated", "newcomer", "nameless")


@dataclass(frozen=True)
class CappedRows:
    """Rows with capped weights."""

    rows: Rows
    moved: dict[str, float]
    """By rule, the part of all weight that it took away from where too much came from."""
    largest_share: float | None
    """Largest share of what people hold that one person holds. None when no person is named."""


def capped_rows(buffer: ReplayBuffer, settings: RewardSettings) -> CappedRows:
    """The buffer's rows with capped weights."""
    rows = buffer.rows()
    labels, pairs = ([buffer[episode_id] for episode_id in episodes] for episodes in (rows.episodes, rows.pair_episodes))
    given = Counter(person for entry in {entry.episode_id: entry for entry in [*labels, *pairs]}.values() for person in entry.voters)
    of_labels, of_pairs = (weights_by_rule(entries, settings, given) for entries in (labels, pairs))
    moved = {rule: float((1 - torch.cat([of_labels[rule], of_pairs[rule]])).clamp(min=0).mean()) for rule in of_labels}
    little_N, little_P = nameless_weights(labels, pairs, settings.nameless_weight)
    moved["nameless"] = float((1 - torch.cat([little_N, little_P])).mean())
    weighed = replace(
        rows,
        weights_N=rows.weights_N * combined_weights(of_labels) * little_N,
        pair_weights_P=rows.pair_weights_P * combined_weights(of_pairs) * little_P,
    )
    weighed = buffer.with_led(weighed)  # after the rules that count labels: they are parts of a label, and only the cap on a person sums weights
    capped = person_capped(weighed, [entry.voters for entry in pairs], settings.person_share)
    return replace(capped, moved={**moved, **capped.moved})


def person_capped(rows: Rows, pair_voters: Sequence[Sequence[str]], share: float) -> CappedRows:
    """The rows with no person beyond ``share``: among pairs, where enough people gave some for that, and among labels and pairs together.

    In the fit a label weighs as much as its parts, so these amounts are what is capped.
    """
    pair_factors_P = torch.ones(len(pair_voters), dtype=torch.float64)
    of_pairs = held_by_person(rows.pair_weights_P, pair_voters)
    if len(of_pairs) * share >= 1:
        pair_factors_P = row_factors(pair_voters, share_factors(of_pairs, share))
    voters = [*rows.voters, *pair_voters]
    before_N = torch.cat([rows.weights_N * rows.amounts_N, rows.pair_weights_P.double()])
    amounts_N = torch.cat([rows.weights_N * rows.amounts_N, rows.pair_weights_P * pair_factors_P])
    factors = share_factors(held_by_person(amounts_N, voters), share)
    all_N = row_factors(voters, factors)
    kept_N = amounts_N * all_N
    labels = len(rows.voters)
    return CappedRows(
        rows=replace(
            rows,
            weights_N=(rows.weights_N * all_N[:labels]).float(),
            pair_weights_P=(rows.pair_weights_P * pair_factors_P * all_N[labels:]).float(),
        ),
        moved={"person": 1 - float(kept_N.sum() / before_N.sum()) if float(before_N.sum()) else 0.0},
        largest_share=largest_share(amounts_N, voters, factors),
    )


def weights_by_rule(entries: Sequence[BufferEntry], settings: RewardSettings, given: Mapping[str, int]) -> dict[str, Tensor]:
    """Weights ``[N]`` (mean 1) of these entries by each rule alone that compares groups. ``given``: number of labels by person."""
    return {
        "tenant": share_capped([(entry.tenant,) for entry in entries], settings.tenant_share),
        "hour": share_capped([(f"{entry.tenant} {entry.newest_feedback_at:%Y-%m-%dT%H}",) for entry in entries], settings.hour_share),
        "repeated": mean_one(_repeated_weights(entries)),
        "newcomer": mean_one(_newcomer_weights(entries, settings.newcomer_labels, given)),
    }


def combined_weights(by_rule: Mapping[str, Tensor]) -> Tensor:
    """Weights ``[N]`` (mean 1) under these rules together."""
    return mean_one(torch.stack(list(by_rule.values())).prod(0))


def nameless_weights(labels: Sequence[BufferEntry], pairs: Sequence[BufferEntry], weight: float) -> tuple[Tensor, Tensor]:
    """Weights of labels and pairs: ``weight`` where none of the voters gave a name, 1 for all where nobody did (they may be many people)."""
    nameless = [torch.tensor([entry.nameless for entry in entries], dtype=torch.bool) for entries in (labels, pairs)]
    named = any(entry.voters and not entry.nameless for entry in [*labels, *pairs])
    of_labels, of_pairs = (torch.where(which, weight if named else 1.0, 1.0) for which in nameless)
    return of_labels, of_pairs


def _repeated_weights(entries: Sequence[BufferEntry]) -> Tensor:
    """The same people on the same question and answer count as one label together, however many pairs it has."""
    said = {entry.episode_id: (entry.voters, entry.said) if entry.said and entry.voters else entry.episode_id for entry in entries}
    times = Counter(said.values())
    return torch.tensor([1 / times[said[entry.episode_id]] for entry in entries])


def _newcomer_weights(entries: Sequence[BufferEntry], enough: int, given: Mapping[str, int]) -> Tensor:
    """People with fewer labels than ``enough`` count in proportion; a label of several people counts as their mean."""
    shares = [[min(1.0, given[person] / enough) for person in entry.voters] for entry in entries]
    return torch.tensor([sum(each) / len(each) if each else 1.0 for each in shares])
