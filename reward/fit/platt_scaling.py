"""Calibration: a temperature and an offset that turn the heads' logits into probabilities (Platt 1999). Pure arithmetic, deterministic.

The replay buffer keeps more of the rarer verdict than people gave, so only labels from the time in which it kept everything say how many answers
are good (choice-based sampling; King and Zeng 2001). Of these all count, so that chance averages out, the older ones a little less; but labels from
before the share of good answers has changed count nothing (an adaptive window: Bifet and Gavaldà 2007).

Shapes: ``N`` labels. Float64 throughout.
"""

import torch
from torch import Tensor

STEPS = 24
TINY = 1e-9
PRIOR_STRENGTH = (4.0, 1.0)
"""Of the prior on slope and offset, in the units of the fit's information: a label adds its variance times its squared logit, and its variance."""
SLOPES = (0.1, 10.0)
WINDOWS = (50, 100, 200, 400)
"""Newest labels that are compared with all older ones."""
CHANGED = 4.0
"""Standard errors between newer and older labels beyond which something has changed. Every refit asks again, so chance gets many tries."""


def calibrate(logits_N: Tensor, verdicts_N: Tensor, weights_N: Tensor, newer_N: Tensor, half_life: float) -> tuple[float, float]:
    """(temperature, offset) for unseen logits. ``newer_N``: number of labels newer than each one; ``half_life`` in labels."""
    weights_N = weights_N * 0.5 ** (newer_N.double() / half_life)
    temperature, offset = platt(logits_N, verdicts_N, weights_N)
    since = labels_since_change(logits_N, torch.sigmoid(logits_N / temperature + offset), verdicts_N, weights_N, newer_N)
    return (temperature, offset) if since is None else platt(logits_N, verdicts_N, weights_N * (newer_N < since))


def platt(logits_N: Tensor, verdicts_N: Tensor, weights_N: Tensor) -> tuple[float, float]:
    """(temperature, offset) that minimise the log loss of unseen logits, divided by the one and shifted by the other.

    A prior holds both near (1, 0): a few labels, or logits that hardly differ, must not make the model useless or overconfident by chance.
    """
    at = torch.tensor([1.0, 0.0], dtype=torch.float64)
    prior, strength = at.clone(), torch.tensor(PRIOR_STRENGTH, dtype=torch.float64)
    x_N2 = torch.stack([logits_N, torch.ones_like(logits_N)], 1)
    for _ in range(STEPS):
        p_N = torch.sigmoid(x_N2 @ at)
        gradient = x_N2.T @ (weights_N * (p_N - verdicts_N)) + strength * (at - prior)
        curvature = (x_N2 * (weights_N * (p_N * (1 - p_N)).clamp(min=0.05))[:, None]).T @ x_N2 + torch.diag(strength)
        at = at - torch.linalg.solve(curvature, gradient)
    slope = float(at[0].clamp(*SLOPES))
    return 1 / slope, float(at[1])


def labels_since_change(logits_N: Tensor, chances_N: Tensor, verdicts_N: Tensor, weights_N: Tensor, newer_N: Tensor) -> int | None:
    """Number of newest labels that differ most from the older ones, where that is no chance; None otherwise.

    Compared are both scores of Platt's fit (the gradients of the log likelihood): the errors, whose mean moves when more or fewer answers are good,
    and the errors times the logits, whose mean moves when people like something else.
    """
    found: dict[int, float] = {}
    error_N, variance_N = verdicts_N - chances_N, chances_N * (1 - chances_N)
    for newest in WINDOWS:
        newer_side_N, older_side_N = weights_N * (newer_N < newest), weights_N * (newer_N >= newest)
        if min(float(newer_side_N.sum()), float(older_side_N.sum())) <= 0:
            break
        sides = (newer_side_N, older_side_N)
        found[newest] = max(_standard_errors_apart(error_N * d_N, variance_N * d_N**2, *sides) for d_N in (torch.ones_like(logits_N), logits_N))
    most = max(found, key=lambda newest: found[newest], default=None)
    return most if most is not None and found[most] > CHANGED else None


def _standard_errors_apart(values_N: Tensor, variances_N: Tensor, one_N: Tensor, other_N: Tensor) -> float:
    """Difference of two weighted means of the values, in standard errors."""
    means = [float((side_N * values_N).sum() / side_N.sum()) for side_N in (one_N, other_N)]
    variance = sum(float((side_N**2 * variances_N).sum() / side_N.sum() ** 2) for side_N in (one_N, other_N))
    return abs(means[0] - means[1]) / max(variance**0.5, TINY)
