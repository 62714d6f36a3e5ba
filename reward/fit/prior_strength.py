"""Do the labels support the usual pull of the weights to zero, or ask for a stronger one? The evidence decides (MacKay 1992). Pure arithmetic.

A hundred clean thumbs on a manner of speaking are learned best with a weak pull; a thousand noisy ones on a general "better" with one so strong
that each feature hardly says more than which way it points. Which of the two the labels at hand are is told by their marginal likelihood under
either prior, with thumbs taken as numbers about their mean (a Gaussian process with a linear kernel: Rasmussen and Williams 2006, ch. 2.2 and 5.4).

Shapes: ``N`` labels, ``D`` features.
"""

import math

import torch
from torch import Tensor

ROWS = 500
"""The newest labels that are asked; their number bounds the cost."""
FEWEST = 20
MARGIN = 0.5
"""Nats by which the evidence for the stronger pull must lie above: labels that tell neither way leave things as set."""
SURE_SHARE = 0.05
BIAS_VARIANCE = 100.0


def in_doubt(design_ND: Tensor, doubtful_ND: Tensor, verdicts_N: Tensor, weights_N: Tensor, l2: float, l2_in_doubt: float) -> bool:
    """True when the labels ask for more than ``l2``: when their evidence under the geometric middle of both pulls is the higher by ``MARGIN``.

    ``design_ND`` are the features at their usual gains, ``doubtful_ND`` at those in doubt; ``weights_N`` (positive) say how much each verdict counts.
    """
    if l2_in_doubt <= l2 or len(verdicts_N) < FEWEST:
        return False
    usual = evidence(design_ND, verdicts_N, weights_N, l2)
    return evidence(doubtful_ND, verdicts_N, weights_N, math.sqrt(l2 * l2_in_doubt)) > usual + MARGIN


def evidence(design_ND: Tensor, verdicts_N: Tensor, weights_N: Tensor, l2: float) -> float:
    """Log marginal likelihood in nats, up to a constant of the labels alone. The noise is that of a coin as good as the verdicts."""
    share = float((weights_N * verdicts_N).sum() / weights_N.sum())
    share = min(1 - SURE_SHARE, max(SURE_SHARE, share))
    variance = 1 / (share * (1 - share))
    covariance_NN = design_ND @ design_ND.T / l2 + BIAS_VARIANCE
    covariance_NN.diagonal().add_(variance / weights_N)
    root_NN = torch.linalg.cholesky(covariance_NN)
    whitened_N1 = torch.linalg.solve_triangular(root_NN, ((verdicts_N - share) * variance)[:, None], upper=False)
    return float(-0.5 * (whitened_N1**2).sum() - root_NN.diagonal().log().sum())
