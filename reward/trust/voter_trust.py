"""Trust in voters: no person may dominate the labels, and people who contradict everybody else count little.

Shapes: ``N`` labels. Both rules use the labels in the buffer alone, so they do not depend on order either.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

USUAL_TRUST = 0.9
"""Prior probability that a person's verdicts mean what they say."""
CRITIC_AGREES, CRITIC_LABELS = 0.75, 8.0
"""Prior of a critic: it agreed with people this often, on this many labels."""
LEAST_SAY = 0.01
MOST_EVIDENCE = 0.5
"""Largest change of a person's trust by one label, in log-odds."""


def share_capped(voters: Sequence[Sequence[str]], share: float) -> Tensor:
    """Weights ``[N]`` (mean 1) with which no group (a tenant, an hour) holds more than ``share`` of the labels' *original* weight.

    Softer than the cap on a person (person_share_cap.py): a second tenant's first label must not silence the first tenant. A label of several
    groups has their mean weight.
    """
    counts: dict[str, float] = defaultdict(float)
    for people in voters:
        for person in people:
            counts[person] += 1 / len(people)
    allowed = max(1.0, share * len(voters))
    weight = {person: min(1.0, allowed / count) for person, count in counts.items()}
    return mean_one(_by_label(voters, weight))


def trust_of_voters(voters: Sequence[Sequence[str]], verdicts_N: Tensor, unseen_N: Tensor, amounts_N: Tensor | None = None) -> dict[str, float]:
    """Probability that each person's verdicts mean what they say. ``unseen_N``: predictions of a model that has not seen the labels; ``amounts_N``:
    what part of a label each row is (the many comparisons of one answer are one label together); None: each is one.

    Bayes' rule between two kinds of people: those whose verdicts are as the model predicts (``p``), and those whose verdicts are the opposite
    (``1 - p``). The prior for the first kind is ``USUAL_TRUST``. A label about which the model is unsure (near 0.5) says little, and no single
    label more than ``MOST_EVIDENCE``: a taste of one's own is not hostility.
    """
    logit_N = torch.logit(unseen_N.double(), eps=1e-6).clamp(-MOST_EVIDENCE, MOST_EVIDENCE)
    evidence_N = (2 * verdicts_N.double() - 1) * logit_N * (1.0 if amounts_N is None else amounts_N.double())
    found: dict[str, float] = defaultdict(lambda: math.log(USUAL_TRUST / (1 - USUAL_TRUST)))
    for people, evidence in zip(voters, evidence_N.tolist(), strict=True):
        for person in people:
            found[person] += evidence
    return {person: 1 / (1 + math.exp(-max(-30.0, min(30.0, z)))) for person, z in found.items()}


def reliability_weights(voters: Sequence[Sequence[str]], trust: Mapping[str, float]) -> Tensor:
    """Weights ``[N]``, 0 to 1, by the people's trust. At chance level or below 0: hostile thumbs are left out, not inverted."""
    return _by_label(voters, {person: min(1.0, max(0.0, (2 * t - 1) / (2 * USUAL_TRUST - 1))) for person, t in trust.items()})


def smoothed_trust(voters: Sequence[Sequence[str]], trust: Mapping[str, float]) -> Tensor:
    """The trust ``[N]`` by which a label's target is smoothed: 0.5 (the label says nothing) to 1 (no smoothing).

    Only doubt beyond the usual is smoothed: the temperature already accounts for the noise that all people share.
    """
    return _by_label(voters, {person: 1 - min(0.5, max(0.0, USUAL_TRUST - t)) for person, t in trust.items()})


def critic_weight(judged: Sequence[tuple[float, float]]) -> float:
    """Weight of a critic's verdicts, up to 1, from labels on which people voted too: (people's verdict, the critic's), 0 bad to 1 good.

    It grows with the part of labels on which both agree, from a prior of ``CRITIC_LABELS`` at ``CRITIC_AGREES``. At people's usual trust the weight
    is 1; at chance level or below it is ``LEAST_SAY``, almost nothing, so that a fit on a critic's verdicts alone is still defined.
    """
    agree = sum((people >= 0.5) == (critic >= 0.5) for people, critic in judged)
    agreement = (CRITIC_AGREES * CRITIC_LABELS + agree) / (CRITIC_LABELS + len(judged))
    return min(1.0, max(LEAST_SAY, (2 * agreement - 1) / (2 * USUAL_TRUST - 1)))


def mean_one(weights_N: Tensor) -> Tensor:
    """The weights ``[N]``, scaled to a mean of 1, so that the total weight of the labels does not change."""
    return weights_N / weights_N.mean() if len(weights_N) else weights_N


def _by_label(voters: Sequence[Sequence[str]], weight: Mapping[str, float]) -> Tensor:
    return torch.tensor([sum(weight[p] for p in people) / len(people) if people else 1.0 for people in voters], dtype=torch.float32)
