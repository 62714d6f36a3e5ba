"""Strength of the prior (regularisation): do the labels support the usual one, or a stronger one? Their evidence decides (MacKay 1992). Pure
arithmetic.

A hundred clean thumbs on a manner of speaking are learned best with weak regularisation. A thousand noisy thumbs on a general "better" need such a
strong one that each feature says little more than its direction. The labels' marginal likelihood under either prior tells which case it is; thumbs
are treated as numbers around their mean (a Gaussian process with a linear kernel: Rasmussen and Williams 2006, ch. 2.2 and 5.4).

Shapes: ``N`` labels, ``D`` features.
"""

import math

import torch
from torch import Tensor

ROWS = 500
"""Newest labels that are used, to limit the cost."""
FEWEST = 20
MARGIN = 0.5
"""Nats by which the evidence for the stronger prior must be higher: labels that do not decide leave the setting as it is."""
SURE_SHARE = 0.05
BIAS_VARIANCE = 100.0


def in_doubt(design_ND: Tensor, doubtful_ND: Tensor, verdicts_N: Tensor, weights_N: Tensor, l2: float, l2_in_doubt: float) -> bool:
    """True when the labels need more regularisation than ``l2``: their evidence at the geometric mean of both is higher by ``MARGIN``.

    ``design_ND`` are the features with their usual gains, ``doubtful_ND`` with the gains in doubt; ``weights_N`` (positive) weigh the verdicts.
    """
    if l2_in_doubt <= l2 or len(verdicts_N) < FEWEST:
        return False
    usual = evidence(design_ND, verdicts_N, weights_N, l2)
    return evidence(doubtful_ND, verdicts_N, weights_N, math.sqrt(l2 * l2_in_doubt)) > usual + MARGIN


def evidence(design_ND: Tensor, verdicts_N: Tensor, weights_N: Tensor, l2: float) -> float:
    """Log marginal likelihood in nats, up to a constant. The noise is that of a Bernoulli variable with the verdicts' mean."""
    share = float((weights_N * verdicts_N).sum() / weights_N.sum())
    share = min(1 - SURE_SHARE, max(SURE_SHARE, share))
    variance = 1 / (share * (1 - share))
    covariance_NN = design_ND @ design_ND.T / l2 + BIAS_VARIANCE
    covariance_NN.diagonal().add_(variance / weights_N)
    root_NN = torch.linalg.cholesky(covariance_NN)
    whitened_N1 = torch.linalg.solve_triangular(root_NN, ((verdicts_N - share) * variance)[:, None], upper=False)
    return float(-0.5 * (whitened_N1**2).sum() - root_NN.diagonal().log().sum())
