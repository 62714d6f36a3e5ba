"""Fitting the heads: weighted logistic regression, many at once, to convergence. Pure arithmetic, deterministic.

Shapes: ``M`` rows, ``D`` features, ``H`` heads (bootstrap and fold heads together). A thumb is a row of features with the verdict as its
target; a comparison (Bradley–Terry, 1952) is a row of differences, better less worse, with target 1 and no bias; a rating is a row for
each of the four levels it may lie above (proportional odds, McCullagh 1980), with a threshold of each level's own. So all are
one convex problem, and the answer depends on the labels alone, not on where the search began.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward.model import CLIP, RewardModel, fold_of

BIAS_L2 = 1e-2
NEWTON_STEPS, CG_STEPS = 12, 40
GRADIENT_LIMIT = 1e-7
CG_PRECISION = 1e-6
"""A step need not be more exact than the quadratic it is taken on."""
PRIOR_LABELS = 4.0
RATINGS = 5
THRESHOLD_SCALE = 3.0
"""How much freer than the weights the thresholds between ratings are."""
SLOPES = (0.1, 10.0)


@dataclass(frozen=True)
class Part:
    """One thing that a label says: the answer is good (0 to 1), or, with a ``level``, it is rated above that level. Weight beside a thumb at 1."""

    target: float
    weight: float
    level: int = 0


@dataclass(frozen=True)
class Rows:
    """What a refit is given, in an order that depends on content alone.

    ``thumbs_ND`` with ``verdicts_N`` (0 bad to 1 good), ``weights_N`` and the ``parts`` that make up each verdict; ``better_PD`` over
    ``worse_PD`` with ``pair_weights_P``. The ids decide folds and bootstrap weights: a thumb's is its episode's, a pair's is that of the
    label that holds it.
    """

    thumbs_ND: Tensor
    verdicts_N: Tensor
    weights_N: Tensor
    """How much say those have who gave the verdict."""
    trust_N: Tensor
    """How likely they are to be right, 0.5 to 1: targets are smoothed by it."""
    parts: Sequence[Sequence[Part]]
    episodes: Sequence[str]
    voters: Sequence[Sequence[str]]
    newer_N: Tensor
    """How many labels are newer than each: calibration looks at the newest most."""
    better_PD: Tensor
    worse_PD: Tensor
    pair_weights_P: Tensor
    pair_episodes: Sequence[str]


@dataclass(frozen=True)
class Recipe:
    """How to fit: the part of the settings that decides the result."""

    features: str
    blocks: tuple[tuple[int, float], ...]
    heads: int
    folds: int
    l2: float
    lower_bound_stds: float
    calibration_half_life_labels: float


@dataclass(frozen=True)
class Problem:
    """The convex problem that rows amount to: ``design_MD`` (thresholds between ratings beyond the features), targets, and weights of every head."""

    centre_D: Tensor
    spread_D: Tensor
    gain_D: Tensor
    thumbs_ND: Tensor
    """Standardised features of each label."""
    design_MD: Tensor
    bias_M: Tensor
    targets_M: Tensor
    weights_MH: Tensor
    ids: Sequence[str]
    """The episode whose label holds each row."""


def problem_of(rows: Rows, recipe: Recipe) -> Problem:
    """Rows as one problem for all heads: first the bootstrap's, then the folds'."""
    centre_D, spread_D = rows.thumbs_ND.mean(0), rows.thumbs_ND.std(0, correction=0) + 1e-3
    gain_D = torch.cat([torch.full((size,), gain / size**0.5) for size, gain in recipe.blocks])

    def standard(x_ND: Tensor) -> Tensor:
        return (((x_ND - centre_D) / spread_D).clamp(-CLIP, CLIP) * gain_D).double()

    thumbs_ND, pairs_PD = standard(rows.thumbs_ND), standard(rows.better_PD) - standard(rows.worse_PD)
    of_part, parts = [n for n, each in enumerate(rows.parts) for _ in each], [part for each in rows.parts for part in each]
    of_Q = torch.tensor(of_part, dtype=torch.int64)
    design_MD = torch.cat([thumbs_ND[of_Q], pairs_PD])
    if any(part.level for part in parts):
        design_MD = torch.cat([design_MD, _thresholds(parts, len(pairs_PD))], 1)
    said_Q = torch.tensor([part.target for part in parts], dtype=torch.float64)
    trust_Q = rows.trust_N.double()[of_Q]
    shares_Q = torch.tensor([part.weight for part in parts], dtype=torch.float64)
    weights_M = torch.cat([rows.weights_N.double()[of_Q] * shares_Q, rows.pair_weights_P.double()])
    ids = [*(rows.episodes[n] for n in of_part), *rows.pair_episodes]
    folds_M = torch.tensor([fold_of(i, recipe.folds) for i in ids], dtype=torch.int64)
    bootstrap_MK = torch.stack([bootstrap(i, recipe.heads) for i in ids])
    kept_MF = (folds_M[:, None] != torch.arange(recipe.folds)[None, :]).double()
    return Problem(
        centre_D=centre_D,
        spread_D=spread_D,
        gain_D=gain_D,
        thumbs_ND=thumbs_ND,
        design_MD=design_MD,
        bias_M=torch.cat([torch.ones(len(parts)), torch.zeros(len(pairs_PD))]).double(),
        targets_M=torch.cat([trust_Q * said_Q + (1 - trust_Q) * (1 - said_Q), torch.ones(len(pairs_PD)).double()]),
        weights_MH=weights_M[:, None] * torch.cat([bootstrap_MK, kept_MF], 1),
        ids=ids,
    )


def fit(rows: Rows, recipe: Recipe) -> RewardModel:
    """The reward model of these rows: bootstrap heads, fold heads, and the temperature that unseen labels call for."""
    problem = problem_of(rows, recipe)
    solved_HD, bias_H = solve(problem.design_MD, problem.bias_M, problem.targets_M, problem.weights_MH, recipe.l2)
    k, solved_HD = recipe.heads, solved_HD[:, : problem.thumbs_ND.shape[1]].contiguous()
    folds_N = torch.tensor([fold_of(i, recipe.folds) for i in rows.episodes], dtype=torch.int64)
    unseen_N = (problem.thumbs_ND @ solved_HD[k:].T + bias_H[k:]).gather(1, folds_N[:, None]).squeeze(1)
    amounts_N = torch.tensor([sum(part.weight for part in each) for each in rows.parts], dtype=torch.float64)
    recency_N = 0.5 ** (rows.newer_N.double() / recipe.calibration_half_life_labels)
    temperature, offset = platt(unseen_N, rows.verdicts_N.double(), rows.weights_N.double() * amounts_N * recency_N)
    return RewardModel(
        features=recipe.features,
        temperature=temperature,
        offset=offset,
        lower_bound_stds=recipe.lower_bound_stds,
        centre_D=problem.centre_D,
        spread_D=problem.spread_D,
        gain_D=problem.gain_D,
        heads_KD=solved_HD[:k].float(),
        head_bias_K=bias_H[:k].float(),
        folds_FD=solved_HD[k:].float(),
        fold_bias_F=bias_H[k:].float(),
    )


def _thresholds(parts: Sequence[Part], pairs: int) -> Tensor:
    """Columns ``[M, 4]`` by which a rating's row for a level is lowered. At zero a rating counts as the mean of its levels, like that of thumbs."""
    levels_M = torch.tensor([part.level for part in parts] + [0] * pairs)
    return -THRESHOLD_SCALE * torch.nn.functional.one_hot(levels_M, RATINGS)[:, 1:].double()


def solve(design_MD: Tensor, bias_M: Tensor, targets_M: Tensor, weights_MH: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Weights ``[H, D]`` and biases ``[H]`` that minimise each head's weighted log loss plus ``l2/2 |w|^2``.

    Damped Newton with conjugate gradients (Nocedal and Wright, ch. 7), all heads in the same matrix products, in float64. Always from
    zero: the problem is convex and well conditioned, so the end is the optimum, and equal input gives equal bits.
    """
    x_MD = torch.cat([design_MD, bias_M[:, None]], 1)
    ridge_D = torch.full((x_MD.shape[1],), l2, dtype=torch.float64)
    ridge_D[-1] = BIAS_L2
    w_DH = torch.zeros(x_MD.shape[1], weights_MH.shape[1], dtype=torch.float64)

    def loss_H(w: Tensor) -> Tensor:
        z = x_MD @ w
        fits = (weights_MH * (torch.nn.functional.softplus(z) - targets_M[:, None] * z)).sum(0)
        return fits + 0.5 * (ridge_D[:, None] * w * w).sum(0)

    now_H = loss_H(w_DH)
    for _ in range(NEWTON_STEPS):
        p_MH = torch.sigmoid(x_MD @ w_DH)
        gradient_DH = x_MD.T @ (weights_MH * (p_MH - targets_M[:, None])) + ridge_D[:, None] * w_DH
        if float(gradient_DH.abs().max()) < GRADIENT_LIMIT:
            break
        curvature_MH = weights_MH * p_MH * (1 - p_MH)
        step_DH = _conjugate_gradients(x_MD, curvature_MH, ridge_D, gradient_DH)
        length_H = torch.ones_like(now_H)
        for _ in range(4):  # a head whose loss would rise takes a shorter step; the others are not held up
            tried_H = loss_H(w_DH - length_H * step_DH)
            length_H = torch.where(tried_H <= now_H, length_H, length_H / 4)
        tried_H = loss_H(w_DH - length_H * step_DH)
        better_H = tried_H <= now_H
        w_DH = torch.where(better_H, w_DH - length_H * step_DH, w_DH)
        now_H = torch.where(better_H, tried_H, now_H)
    return w_DH[:-1].T.contiguous(), w_DH[-1].clone()


def _conjugate_gradients(x_MD: Tensor, curvature_MH: Tensor, ridge_D: Tensor, gradient_DH: Tensor) -> Tensor:
    """Solve ``(X' C X + ridge) step = gradient`` for each head, preconditioned by the diagonal."""
    diagonal_DH = (x_MD * x_MD).T @ curvature_MH + ridge_D[:, None]
    step_DH = torch.zeros_like(gradient_DH)
    residual_DH = gradient_DH.clone()
    preconditioned_DH = residual_DH / diagonal_DH
    direction_DH = preconditioned_DH.clone()
    energy_H = (residual_DH * preconditioned_DH).sum(0)
    tiny = 1e-30
    enough_H = (CG_PRECISION * energy_H).clamp(min=1e-24)
    for _ in range(CG_STEPS):
        if bool((energy_H <= enough_H).all()):
            break
        product_DH = x_MD.T @ (curvature_MH * (x_MD @ direction_DH)) + ridge_D[:, None] * direction_DH
        length_H = energy_H / (direction_DH * product_DH).sum(0).clamp(min=tiny)
        step_DH += length_H * direction_DH
        residual_DH -= length_H * product_DH
        preconditioned_DH = residual_DH / diagonal_DH
        energy_before_H, energy_H = energy_H, (residual_DH * preconditioned_DH).sum(0)
        direction_DH = preconditioned_DH + energy_H / energy_before_H.clamp(min=tiny) * direction_DH
    return step_DH


def bootstrap(episode_id: str, heads: int) -> Tensor:
    """Weights ``[K]`` of one label in each head's Bayesian bootstrap (Rubin 1981): Exp(1), from a hash of the id alone."""
    digest = hashlib.shake_256(b"bootstrap " + episode_id.encode()).digest(8 * heads)
    uniform = torch.tensor([int.from_bytes(digest[8 * k : 8 * k + 7], "big") / 2**56 for k in range(heads)], dtype=torch.float64)
    return -torch.log1p(-uniform.clamp(max=1 - 2**-53))


def platt(logits_N: Tensor, verdicts_N: Tensor, weights_N: Tensor) -> tuple[float, float]:
    """(temperature, offset): unseen logits divided by the one and moved by the other have the least log loss (Platt 1999), float64.

    Both are held near (1, 0) as by ``PRIOR_LABELS`` labels: a few labels of chance must not silence the model, nor make it shout.
    """
    at = torch.tensor([1.0, 0.0], dtype=torch.float64)
    prior, strength = at.clone(), torch.tensor([PRIOR_LABELS, PRIOR_LABELS / 4], dtype=torch.float64)
    x_N2 = torch.stack([logits_N, torch.ones_like(logits_N)], 1)
    for _ in range(NEWTON_STEPS * 2):
        p_N = torch.sigmoid(x_N2 @ at)
        gradient = x_N2.T @ (weights_N * (p_N - verdicts_N)) + strength * (at - prior)
        curvature = (x_N2 * (weights_N * (p_N * (1 - p_N)).clamp(min=0.05))[:, None]).T @ x_N2 + torch.diag(strength)
        at = at - torch.linalg.solve(curvature, gradient)
    slope = float(at[0].clamp(*SLOPES))
    return 1 / slope, float(at[1])
