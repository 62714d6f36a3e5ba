"""How good the model is on labels that it had not seen, and the rule by which a new version may replace the last. Pure arithmetic.

Shapes: ``N`` labels. ``chances`` are probabilities of a good verdict, ``verdicts`` are between 0 (bad) and 1 (good).
"""

import torch
from torch import Tensor

from streams.core.events import Calibration

BINS = 10
SURE = 1e-6
"""Probabilities are clamped this far away from 0 and 1 before their logarithm is taken."""


def calibration(chances_N: Tensor, verdicts_N: Tensor) -> Calibration:
    """Accuracy, the most frequent verdict's share, Brier score, expected calibration error and log loss; all 0 without labels."""
    if len(chances_N) == 0:
        return Calibration(labels=0, accuracy=0.0, baseline=0.0, brier=0.0, ece=0.0)
    chances_N, verdicts_N = chances_N.double(), verdicts_N.double()
    good_N = verdicts_N >= 0.5
    share = float(good_N.double().mean())
    return Calibration(
        labels=len(chances_N),
        accuracy=float(((chances_N >= 0.5) == good_N).double().mean()),
        baseline=max(share, 1 - share),
        brier=float(brier_losses(chances_N, verdicts_N).mean()),
        ece=expected_calibration_error(chances_N, verdicts_N),
        auc=area_under_curve(chances_N, good_N),
        log_loss=float(log_loss(chances_N, verdicts_N).mean()),
        baseline_log_loss=float(log_loss(verdicts_N.mean().expand(len(verdicts_N)), verdicts_N).mean()),
    )


def area_under_curve(chances_N: Tensor, good_N: Tensor) -> float | None:
    """AUC: probability that a good label was predicted above a bad one, ties counted half (Mann and Whitney 1947). None unless there are both.

    By ranks: each good label beats the bad ones below its chance, and half of those at it. Comparing all pairs would take memory for each pair.
    """
    good, bad = int(good_N.sum()), int((~good_N).sum())
    if not good or not bad:
        return None
    levels_U, at_N = torch.unique(chances_N, return_inverse=True)  # sorted
    nothing_U = torch.zeros(len(levels_U), dtype=torch.float64)
    good_U = nothing_U.index_add(0, at_N, good_N.double())
    bad_U = nothing_U.index_add(0, at_N, (~good_N).double())
    below_U = bad_U.cumsum(0) - bad_U
    return float((good_U * (below_U + bad_U / 2)).sum() / (good * bad))


def expected_calibration_error(chances_N: Tensor, verdicts_N: Tensor) -> float:
    """Mean over 10 equal-width bins of |mean chance - mean verdict|, by the share of labels in each (Naeini et al. 2015)."""
    bins_N = (chances_N * BINS).long().clamp(0, BINS - 1)
    error = 0.0
    for b in range(BINS):
        inside_N = bins_N == b
        if bool(inside_N.any()):
            error += float(inside_N.double().mean()) * abs(float(chances_N[inside_N].mean()) - float(verdicts_N[inside_N].mean()))
    return error


def log_loss(chances_N: Tensor, verdicts_N: Tensor) -> Tensor:
    """Log loss of each label ``[N]`` in nats, float64."""
    p = chances_N.double().clamp(SURE, 1 - SURE)
    y = verdicts_N.double()
    return -(y * p.log() + (1 - y) * (1 - p).log())


def brier_losses(chances_N: Tensor, verdicts_N: Tensor) -> Tensor:
    """Squared error of each label ``[N]``, 0 to 1 (Brier 1950), float64."""
    return (chances_N.double() - verdicts_N.double()) ** 2


def no_worse(new_loss_N: Tensor, old_loss_N: Tensor, tolerance_se: float, weights_N: Tensor | None = None) -> bool:
    """The publishing rule: the mean of (new - old) loss is at most ``tolerance_se`` standard errors above 0.

    Both losses are of predictions by fits that had not seen the label. ``weights_N`` (not negative) weigh the labels; None: all alike. With the
    weight of fewer than two labels the answer is True.
    """
    difference_N = (new_loss_N - old_loss_N).double()
    weights_N = torch.ones_like(difference_N) if weights_N is None else weights_N.double()
    total, squared = float(weights_N.sum()), float((weights_N**2).sum())
    if squared == 0 or (labels := total**2 / squared) < 2:  # the effective number of labels (Kish 1965)
        return True
    mean = float((weights_N * difference_N).sum()) / total
    variance = float((weights_N**2 * (difference_N - mean) ** 2).sum()) / total**2 * labels / (labels - 1)
    return mean <= tolerance_se * variance**0.5
