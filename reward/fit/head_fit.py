"""Fitting the heads: weighted logistic regression, many at once, to convergence (solver.py). Pure arithmetic, deterministic.

Shapes: ``M`` rows, ``D`` features, ``H`` heads (bootstrap and fold heads together). A thumb is a row of features with the verdict as its
target; a comparison (Bradley–Terry, 1952) is a row of differences, better less worse, with target 1 and no bias; a rating is a row for
each of the four levels it may lie above (proportional odds, McCullagh 1980), with a threshold of each level's own. So all are
one convex problem, and the answer depends on the labels alone, not on where the search began.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reward.fit import prior_strength as evidence
from reward.fit.logistic_solver import solve
from reward.fit.reward_model import CLIP, RewardModel, fold_of

PLATT_STEPS = 24
PRIOR_LABELS = 4.0
RATINGS = 5
THRESHOLD_SCALE = 3.0
"""How much freer than the weights the thresholds between ratings are."""
SLOPES = (0.1, 10.0)
PATIENCE = 10.0
"""So many times as long does calibration remember labels that are in doubt: each of them says less."""


@dataclass(frozen=True)
class FitPart:
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
    parts: Sequence[Sequence[FitPart]]
    episodes: Sequence[str]
    voters: Sequence[Sequence[str]]
    newer_N: Tensor
    """How many labels are newer than each: calibration looks at the newest most."""
    better_PD: Tensor
    worse_PD: Tensor
    pair_weights_P: Tensor
    pair_episodes: Sequence[str]

    @property
    def amounts_N(self) -> Tensor:
        """What all parts of each label weigh, beside a thumb at 1, before it is asked who gave it; float64."""
        return torch.tensor([sum(part.weight for part in each) for each in self.parts], dtype=torch.float64)


@dataclass(frozen=True)
class FitRecipe:
    """How to fit: the part of the settings that decides the result."""

    features: str
    blocks: tuple[tuple[int, float], ...]
    heads: int
    folds: int
    l2: float
    l2_in_doubt: float
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
    l2: float
    """The pull to zero that the labels support."""
    ids: Sequence[str]
    """The episode whose label holds each row."""


def problem_of(rows: Rows, recipe: FitRecipe) -> Problem:
    """Rows as one problem for all heads: first the bootstrap's, then the folds'."""
    centre_D, spread_D = rows.thumbs_ND.mean(0), rows.thumbs_ND.std(0, correction=0) + 1e-3

    def standard(x_ND: Tensor) -> Tensor:
        return ((x_ND - centre_D) / spread_D).clamp(-CLIP, CLIP)

    thumbs_ND = standard(rows.thumbs_ND)
    gain_D, l2 = _pull(thumbs_ND, rows, recipe)
    thumbs_ND, pairs_PD = (thumbs_ND * gain_D).double(), ((standard(rows.better_PD) - standard(rows.worse_PD)) * gain_D).double()
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
    bootstrap_MK = bootstrap(ids, recipe.heads)
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
        l2=l2,
        ids=ids,
    )


def _pull(standard_ND: Tensor, rows: Rows, recipe: FitRecipe) -> tuple[Tensor, float]:
    """Gains ``[D]`` and the pull to zero. In doubt all are pulled harder, except a feature that is a block of its own: one weight is soon known."""
    usual_D, doubtful_D = (
        torch.cat([torch.full((size,), gain / size**0.5) for size, gain in blocks])
        for blocks in (recipe.blocks, [(size, max(gain, 1.0) if size == 1 else gain) for size, gain in recipe.blocks])
    )
    # Whoever counts for several, since few like them vote, has still said one thing.
    weights_N = (rows.weights_N * torch.tensor([sum(part.weight for part in each) for each in rows.parts])).clamp(max=1.0)
    asked_N = (rows.newer_N < evidence.ROWS) & (weights_N > 0)
    x_ND, weights_N, verdicts_N = standard_ND[asked_N], weights_N[asked_N].double(), rows.verdicts_N[asked_N].double()
    doubt = evidence.in_doubt((x_ND * usual_D).double(), (x_ND * doubtful_D).double(), verdicts_N, weights_N, recipe.l2, recipe.l2_in_doubt)
    return (doubtful_D, recipe.l2_in_doubt) if doubt else (usual_D, recipe.l2)


def fit(rows: Rows, recipe: FitRecipe) -> RewardModel:
    """The reward model of these rows: bootstrap heads, fold heads, and the temperature that unseen labels call for."""
    problem = problem_of(rows, recipe)
    solved_HD, bias_H = solve(problem.design_MD, problem.bias_M, problem.targets_M, problem.weights_MH, problem.l2)
    k, solved_HD = recipe.heads, solved_HD[:, : problem.thumbs_ND.shape[1]].contiguous()
    folds_N = torch.tensor([fold_of(i, recipe.folds) for i in rows.episodes], dtype=torch.int64)
    unseen_N = (problem.thumbs_ND @ solved_HD[k:].T + bias_H[k:]).gather(1, folds_N[:, None]).squeeze(1)
    half_life = recipe.calibration_half_life_labels * (PATIENCE if problem.l2 > recipe.l2 else 1.0)
    recency_N = 0.5 ** (rows.newer_N.double() / half_life)
    temperature, offset = platt(unseen_N, rows.verdicts_N.double(), rows.weights_N.double() * rows.amounts_N * recency_N)
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


def _thresholds(parts: Sequence[FitPart], pairs: int) -> Tensor:
    """Columns ``[M, 4]`` by which a rating's row for a level is lowered. At zero a rating counts as the mean of its levels, like that of thumbs."""
    levels_M = torch.tensor([part.level for part in parts] + [0] * pairs)
    return -THRESHOLD_SCALE * torch.nn.functional.one_hot(levels_M, RATINGS)[:, 1:].double()


def bootstrap(episode_ids: Sequence[str], heads: int) -> Tensor:
    """Weights ``[M, K]`` of each label in each head's Bayesian bootstrap (Rubin 1981): Exp(1), from a hash of the id alone."""
    digests = b"".join(hashlib.shake_256(b"bootstrap " + i.encode()).digest(8 * heads) for i in episode_ids)
    integers_MK = np.frombuffer(digests, dtype=">u8").reshape(len(episode_ids), heads) >> 8
    uniform_MK = torch.from_numpy(integers_MK.astype(np.float64) / 2**56)
    return -torch.log1p(-uniform_MK.clamp(max=1 - 2**-53))


def platt(logits_N: Tensor, verdicts_N: Tensor, weights_N: Tensor) -> tuple[float, float]:
    """(temperature, offset): unseen logits divided by the one and moved by the other have the least log loss (Platt 1999), float64.

    Both are held near (1, 0) as by ``PRIOR_LABELS`` labels: a few labels of chance must not silence the model, nor make it shout.
    """
    at = torch.tensor([1.0, 0.0], dtype=torch.float64)
    prior, strength = at.clone(), torch.tensor([PRIOR_LABELS, PRIOR_LABELS / 4], dtype=torch.float64)
    x_N2 = torch.stack([logits_N, torch.ones_like(logits_N)], 1)
    for _ in range(PLATT_STEPS):
        p_N = torch.sigmoid(x_N2 @ at)
        gradient = x_N2.T @ (weights_N * (p_N - verdicts_N)) + strength * (at - prior)
        curvature = (x_N2 * (weights_N * (p_N * (1 - p_N)).clamp(min=0.05))[:, None]).T @ x_N2 + torch.diag(strength)
        at = at - torch.linalg.solve(curvature, gradient)
    slope = float(at[0].clamp(*SLOPES))
    return 1 / slope, float(at[1])
