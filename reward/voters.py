"""Whose thumbs count how much: nobody steers the model alone, and who contradicts everybody else counts little.

Shapes: ``N`` labels. Both rules look at the labels in the buffer alone, so they are as independent of order as the buffer is.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

PRIOR_AGREED, PRIOR_DISAGREED = 8.0, 2.0
"""A newcomer is taken to be right 8 times out of 10, as if seen ten times already."""
USUAL_TRUST = PRIOR_AGREED / (PRIOR_AGREED + PRIOR_DISAGREED)


def capped(voters: Sequence[Sequence[str]], share: float) -> Tensor:
    """Weights ``[N]`` under which no person holds more than ``share`` of the labels' weight as they were counted; they average 1.

    A label of several people weighs as their mean. With fewer people than 1 / ``share`` all weigh the same.
    """
    counts: dict[str, float] = defaultdict(float)
    for people in voters:
        for person in people:
            counts[person] += 1 / len(people)
    allowed = max(1.0, share * len(voters))
    weight = {person: min(1.0, allowed / count) for person, count in counts.items()}
    return _averaging_one(_by_label(voters, weight))


def trusts(voters: Sequence[Sequence[str]], verdicts_N: Tensor, unseen_N: Tensor) -> dict[str, float]:
    """How likely each person is to be right: how often their verdicts agree with what a model says that has not seen them (float ``[N]``).

    What a model is unsure of (near 0.5) counts as little evidence, either way. A newcomer is taken to be right as often as the prior says.
    """
    agreed: dict[str, float] = defaultdict(lambda: PRIOR_AGREED)
    disagreed: dict[str, float] = defaultdict(lambda: PRIOR_DISAGREED)
    sureness_N = (2 * unseen_N - 1).abs()
    same_N = (unseen_N >= 0.5) == (verdicts_N >= 0.5)
    for people, sureness, same in zip(voters, sureness_N.tolist(), same_N.tolist(), strict=True):
        for person in people:
            (agreed if same else disagreed)[person] += sureness
    everybody = {person for people in voters for person in people}
    return {person: agreed[person] / (agreed[person] + disagreed[person]) for person in everybody}


def reliable(voters: Sequence[Sequence[str]], trust: Mapping[str, float]) -> Tensor:
    """Weights ``[N]``, 0 to 1, by the people's trust. At the level of chance or below nothing: hostile thumbs are not turned round, but left out."""
    return _by_label(voters, {person: min(1.0, max(0.0, (2 * t - 1) / (2 * USUAL_TRUST - 1))) for person, t in trust.items()})


def smoothing(voters: Sequence[Sequence[str]], trust: Mapping[str, float]) -> Tensor:
    """The trust ``[N]`` by which a label's target is smoothed, 0.5 (it says nothing) to 1 (taken at its word).

    Only doubt beyond the usual smooths: a person who is as reliable as most is taken at their word, since noise that all share is what
    the temperature is fitted to.
    """
    return _by_label(voters, {person: 1 - min(0.5, max(0.0, USUAL_TRUST - t)) for person, t in trust.items()})


def _by_label(voters: Sequence[Sequence[str]], weight: Mapping[str, float]) -> Tensor:
    return torch.tensor([sum(weight[p] for p in people) / len(people) if people else 1.0 for people in voters], dtype=torch.float32)


def _averaging_one(weights_N: Tensor) -> Tensor:
    return weights_N / weights_N.mean() if len(weights_N) else weights_N
