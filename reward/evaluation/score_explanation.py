"""Explains a score: the nearest labelled answers, and the labels that contributed most to it. Pure arithmetic.

A head is the minimum of a regularised sum over rows, so its weights *are* a sum over rows: ``w = sum_i weight_i (target_i - p_i) x_i / l2`` (the
representer theorem; Yeh et al. 2018). The part of a logit that a label made is thus exact, not an estimate.

Shapes: ``M`` rows of the fit, ``N`` labels, ``D`` features, ``K`` bootstrap heads.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from reward.fit.head_fit import FitRecipe, Rows, problem_of
from reward.fit.logistic_solver import solve
from reward.fit.reward_model import RewardModel, Scores


@dataclass(frozen=True)
class Neighbour:
    """A labelled answer that is like the one explained."""

    episode_id: str
    similarity: float
    """Cosine of the standardised features, -1 to 1."""
    verdict: float


@dataclass(frozen=True)
class Moved:
    """What one episode's label contributes to the score, in logits after calibration. Above 0: in favour of the answer."""

    episode_id: str
    logits: float


@dataclass(frozen=True)
class Explanation:
    """A score with its reasons. ``standing`` and all contributions sum up to the mean calibrated logit of the heads."""

    mean: float
    std: float
    lower: float
    neighbours: tuple[Neighbour, ...]
    moved: tuple[Moved, ...]
    """The strongest contributions, in either direction."""
    others: float
    """Sum of all other contributions, in logits."""
    standing: float
    """The baseline: logit of an average answer, from bias and calibration."""


def explain(model: RewardModel, rows: Rows, recipe: FitRecipe, features_D: Tensor, most: int = 5) -> Explanation:
    """Explain a model's score of ``features_D`` by the ``rows`` and the ``recipe`` that it was fitted with."""
    scores: Scores = model.score(features_D[None])
    problem, heads, dimensions = problem_of(rows, recipe), recipe.heads, len(features_D)
    solved_HD, bias_H = solve(problem.design_MD, problem.bias_M, problem.targets_M, problem.weights_MH, problem.l2)
    p_MK = torch.sigmoid(problem.design_MD @ solved_HD[:heads].T + problem.bias_M[:, None] * bias_H[None, :heads])
    strength_MK = problem.weights_MH[:, :heads] * (problem.targets_M[:, None] - p_MK) / problem.l2
    x_D = model.standardise(features_D[None])[0].double()
    moves_M = strength_MK.mean(1) * (problem.design_MD[:, :dimensions] @ x_D) / model.temperature
    by_episode: dict[str, float] = defaultdict(float)
    for episode_id, move in zip(problem.ids, moves_M.tolist(), strict=True):
        by_episode[episode_id] += move
    strongest = sorted(by_episode.items(), key=lambda item: (-abs(item[1]), item[0]))[:most]
    cosines_N = torch.nn.functional.cosine_similarity(problem.thumbs_ND, x_D[None], dim=1)
    nearest = torch.argsort(cosines_N, descending=True, stable=True)[:most].tolist()
    return Explanation(
        mean=float(scores.mean_N[0]),
        std=float(scores.std_N[0]),
        lower=float(scores.lower_N[0]),
        neighbours=tuple(Neighbour(rows.episodes[n], float(cosines_N[n]), float(rows.verdicts_N[n])) for n in nearest),
        moved=tuple(Moved(*item) for item in strongest),
        others=sum(by_episode.values()) - sum(move for _, move in strongest),
        standing=float(bias_H[:heads].mean()) / model.temperature + model.offset,
    )
