"""Fits the heads: many weighted logistic regressions at once, to convergence (logistic_solver.py). Pure arithmetic, deterministic.

Shapes: ``M`` rows, ``D`` features, ``H`` heads (bootstrap and fold heads together). A thumb is a row of features with the verdict as its target. A
comparison (Bradley–Terry, 1952) is a row of differences, better minus worse, with target 1 and no bias. A rating is one row for each of the four
levels that it may exceed (proportional odds, McCullagh 1980), with a threshold for each level. Together they form one convex problem, so the result
depends on the labels alone, not on a starting point.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reward.fit import prior_strength as evidence
from reward.fit.logistic_solver import solve
from reward.fit.platt_scaling import calibrate
from reward.fit.reward_model import CLIP, RewardModel, fold_of

RATINGS = 5
THRESHOLD_SCALE = 3.0
"""Scale of the thresholds between ratings against the weights: they are regularised less."""


@dataclass(frozen=True)
class FitPart:
    """One statement of a label: the answer is good (0 to 1) or, with a ``level``, its rating is above that level. A thumb has weight 1."""

    target: float
    weight: float
    level: int = 0


@dataclass(frozen=True)
class Rows:
    """The input of a refit, in an order that depends on content alone.

    ``thumbs_ND`` with ``verdicts_N`` (0 bad to 1 good), ``weights_N`` and the ``parts`` of each verdict; ``better_PD`` preferred to ``worse_PD``
    with ``pair_weights_P``. Episode ids decide bootstrap weights, openings decide folds; a pair has those of the episode whose label holds it.
    """

    thumbs_ND: Tensor
    verdicts_N: Tensor
    weights_N: Tensor
    """Weight of the people who gave the verdict."""
    trust_N: Tensor
    """Probability that they are right, 0.5 to 1. Targets are smoothed by it."""
    parts: Sequence[Sequence[FitPart]]
    episodes: Sequence[str]
    voters: Sequence[Sequence[str]]
    newer_N: Tensor
    """Number of labels that are newer than each one: calibration gives the newest the largest weight."""
    complete_N: Tensor
    """1 for labels from the time in which the buffer kept everything, otherwise 0: only they say how many answers are good."""
    better_PD: Tensor
    worse_PD: Tensor
    pair_weights_P: Tensor
    pair_episodes: Sequence[str]
    fold_keys: Sequence[str] = ()
    """What decides the fold of each label; empty: its episode. Labels of one key are in one fold."""
    pair_fold_keys: Sequence[str] = ()

    def folds_N(self, folds: int) -> Tensor:
        """The fold ``[N]`` of each label."""
        return torch.tensor([fold_of(key, folds) for key in self.fold_keys or self.episodes], dtype=torch.int64)

    def pair_folds_P(self, folds: int) -> Tensor:
        """The fold ``[P]`` of each pair."""
        return torch.tensor([fold_of(key, folds) for key in self.pair_fold_keys or self.pair_episodes], dtype=torch.int64)

    @property
    def amounts_N(self) -> Tensor:
        """Weight of all parts of each label (a thumb has 1), without the weight of the people; float64."""
        return torch.tensor([sum(part.weight for part in each) for each in self.parts], dtype=torch.float64)


@dataclass(frozen=True)
class FitRecipe:
    """How to fit: the settings that decide the result."""

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
    """The convex problem made from rows: ``design_MD`` (features, then thresholds between ratings), targets, and weights for every head."""

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
    """L2 regularisation that the labels support."""
    ids: Sequence[str]
    """The episode of each row's label."""


def problem_of(rows: Rows, recipe: FitRecipe) -> Problem:
    """Rows as one problem for all heads: first the bootstrap heads, then the fold heads."""
    centre_D, spread_D = rows.thumbs_ND.mean(0), rows.thumbs_ND.std(0, correction=0) + 1e-3

    def standard(x_ND: Tensor) -> Tensor:
        return ((x_ND - centre_D) / spread_D).clamp(-CLIP, CLIP)

    thumbs_ND = standard(rows.thumbs_ND)
    gain_D, l2 = _regularisation(thumbs_ND, rows, recipe)
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
    bootstrap_MK = bootstrap(ids, recipe.heads)
    folds_M = torch.cat([rows.folds_N(recipe.folds)[of_Q], rows.pair_folds_P(recipe.folds)])
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


def _regularisation(standard_ND: Tensor, rows: Rows, recipe: FitRecipe) -> tuple[Tensor, float]:
    """Gains ``[D]`` and L2 regularisation. In doubt all features are regularised more, except one that is a block of its own: a single weight is
    learned quickly."""
    usual_D, doubtful_D = (
        torch.cat([torch.full((size,), gain / size**0.5) for size, gain in blocks])
        for blocks in (recipe.blocks, [(size, max(gain, 1.0) if size == 1 else gain) for size, gain in recipe.blocks])
    )
    # A person who counts for several, because few like them vote, is still one observation.
    weights_N = (rows.weights_N * torch.tensor([sum(part.weight for part in each) for each in rows.parts])).clamp(max=1.0)
    asked_N = (rows.newer_N < evidence.ROWS) & (weights_N > 0)
    x_ND, weights_N, verdicts_N = standard_ND[asked_N], weights_N[asked_N].double(), rows.verdicts_N[asked_N].double()
    doubt = evidence.in_doubt((x_ND * usual_D).double(), (x_ND * doubtful_D).double(), verdicts_N, weights_N, recipe.l2, recipe.l2_in_doubt)
    return (doubtful_D, recipe.l2_in_doubt) if doubt else (usual_D, recipe.l2)


def fit(rows: Rows, recipe: FitRecipe) -> RewardModel:
    """The reward model of these rows: bootstrap heads, fold heads, and the temperature that fits unseen labels."""
    problem = problem_of(rows, recipe)
    solved_HD, bias_H = solve(problem.design_MD, problem.bias_M, problem.targets_M, problem.weights_MH, problem.l2)
    k, solved_HD = recipe.heads, solved_HD[:, : problem.thumbs_ND.shape[1]].contiguous()
    folds_N = rows.folds_N(recipe.folds)
    unseen_N = (problem.thumbs_ND @ solved_HD[k:].T + bias_H[k:]).gather(1, folds_N[:, None]).squeeze(1)
    weights_N = rows.weights_N.double() * rows.amounts_N * rows.complete_N
    temperature, offset = calibrate(unseen_N, rows.verdicts_N.double(), weights_N, rows.newer_N, recipe.calibration_half_life_labels)
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
    """Threshold columns ``[M, 4]`` for the rows of ratings. With thresholds at zero a rating counts as the mean of its levels, as thumbs would."""
    levels_M = torch.tensor([part.level for part in parts] + [0] * pairs)
    return -THRESHOLD_SCALE * torch.nn.functional.one_hot(levels_M, RATINGS)[:, 1:].double()


def bootstrap(episode_ids: Sequence[str], heads: int) -> Tensor:
    """Weights ``[M, K]`` of each label in each head's Bayesian bootstrap (Rubin 1981): Exp(1), from a hash of the episode id alone."""
    digests = b"".join(hashlib.shake_256(b"bootstrap " + i.encode()).digest(8 * heads) for i in episode_ids)
    integers_MK = np.frombuffer(digests, dtype=">u8").reshape(len(episode_ids), heads) >> 8
    uniform_MK = torch.from_numpy(integers_MK.astype(np.float64) / 2**56)
    return -torch.log1p(-uniform_MK.clamp(max=1 - 2**-53))
