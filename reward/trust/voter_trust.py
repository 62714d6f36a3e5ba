"""Whose thumbs count how much: nobody steers the model alone, and who contradicts everybody else counts little.

Shapes: ``N`` labels. Both rules look at the labels in the buffer alone, so they are as independent of order as the buffer is.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

USUAL_TRUST = 0.9
"""A newcomer means what they say with this chance."""
CRITIC_AGREES, CRITIC_LABELS = 0.75, 8.0
"""What is taken for granted of a critic: on so many labels it agreed with people so often."""
LEAST_SAY = 0.01
MOST_EVIDENCE = 0.5
"""Log-odds that one label may add to or take from a person's trust."""


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
    return averaging_one(_by_label(voters, weight))


def trusts(voters: Sequence[Sequence[str]], verdicts_N: Tensor, unseen_N: Tensor) -> dict[str, float]:
    """The chance that each person means what they say, by what a model says of their labels that has not seen them (float ``[N]``).

    Bayes' rule between two kinds of people: whose verdicts come as the model says (``p``), and whose come the other way round
    (``1 - p``). A newcomer is of the first kind with ``USUAL_TRUST``. What a model is unsure of (near 0.5) says little, and no single label more
    than ``MOST_EVIDENCE``: a taste of one's own is no hostility.
    """
    logit_N = torch.logit(unseen_N.double(), eps=1e-6).clamp(-MOST_EVIDENCE, MOST_EVIDENCE)
    evidence_N = (2 * verdicts_N.double() - 1) * logit_N
    found: dict[str, float] = defaultdict(lambda: math.log(USUAL_TRUST / (1 - USUAL_TRUST)))
    for people, evidence in zip(voters, evidence_N.tolist(), strict=True):
        for person in people:
            found[person] += evidence
    return {person: 1 / (1 + math.exp(-max(-30.0, min(30.0, z)))) for person, z in found.items()}


def reliable(voters: Sequence[Sequence[str]], trust: Mapping[str, float]) -> Tensor:
    """Weights ``[N]``, 0 to 1, by the people's trust. At the level of chance or below nothing: hostile thumbs are not turned round, but left out."""
    return _by_label(voters, {person: min(1.0, max(0.0, (2 * t - 1) / (2 * USUAL_TRUST - 1))) for person, t in trust.items()})


def smoothing(voters: Sequence[Sequence[str]], trust: Mapping[str, float]) -> Tensor:
    """The trust ``[N]`` by which a label's target is smoothed, 0.5 (it says nothing) to 1 (taken at its word).

    Only doubt beyond the usual smooths: who is as reliable as most is taken at their word, since noise that all share is what the temperature
    is fitted to.
    """
    return _by_label(voters, {person: 1 - min(0.5, max(0.0, USUAL_TRUST - t)) for person, t in trust.items()})


def critics_say(judged: Sequence[tuple[float, float]]) -> float:
    """How much a critic's word counts, up to 1, by the labels on which people spoke too: (people's verdict, the critic's), 0 bad to 1 good.

    By the part of them on which both lean the same way; ``CRITIC_LABELS`` at ``CRITIC_AGREES`` are taken for granted. At people's usual trust it
    counts fully, at the level of chance or below ``LEAST_SAY``: next to nothing, though a fit on a critic's words alone stays a fit.
    """
    agree = sum((people >= 0.5) == (critic >= 0.5) for people, critic in judged)
    agreement = (CRITIC_AGREES * CRITIC_LABELS + agree) / (CRITIC_LABELS + len(judged))
    return min(1.0, max(LEAST_SAY, (2 * agreement - 1) / (2 * USUAL_TRUST - 1)))


def averaging_one(weights_N: Tensor) -> Tensor:
    """The same weights ``[N]`` against each other, so scaled that as much is said in all as without them."""
    return weights_N / weights_N.mean() if len(weights_N) else weights_N


def _by_label(voters: Sequence[Sequence[str]], weight: Mapping[str, float]) -> Tensor:
    return torch.tensor([sum(weight[p] for p in people) / len(people) if people else 1.0 for people in voters], dtype=torch.float32)
