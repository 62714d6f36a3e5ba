"""Whom to trust: each person's verdicts beside what the others taught, in which nobody vouches for themselves and everybody has one voice.

A first fit (the judge) says what the crowd thinks of each answer. Its folds are made of people, so that a person's verdicts are compared with fits on
others' labels alone; by conversation, a busy person's other labels would speak for them. And nobody weighs more in it than the median person, so
that a few who vote a lot cannot make themselves the crowd and everybody else its enemy. The fit that follows uses all that trusted people said.

Shapes: ``N`` labels, ``P`` pairs.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reward.fit.head_fit import FitRecipe, Rows, fit
from reward.trust.person_share_cap import held_by_person, row_factors
from reward.trust.voter_trust import USUAL_TRUST, reliability_weights, smoothed_trust, trust_of_voters

SURE = 1e-6
FEWEST_PEOPLE = 5
"""Among fewer people nobody is doubted: when two of four disagree, nobody can tell who is right."""
DOUBTED = 0.5
"""A person whose trust is below this contradicts the crowd. The crowd is more than half of the people: where more than half would be doubted, people
merely differ, and nobody is."""


def trusted_rows(rows: Rows, pair_voters: Sequence[Sequence[str]], recipe: FitRecipe, weigh: bool, smooth: bool) -> Rows:
    """The rows by how far each person agrees with the crowd: labels and pairs weighed and targets smoothed, as asked. ``recipe``: of the fit that
    follows."""
    trust = crowd_trust(rows, pair_voters, recipe)
    return replace(
        rows,
        weights_N=rows.weights_N * reliability_weights(rows.voters, trust) if weigh else rows.weights_N,
        pair_weights_P=rows.pair_weights_P * reliability_weights(pair_voters, trust) if weigh else rows.pair_weights_P,
        trust_N=smoothed_trust(rows.voters, trust) if smooth else rows.trust_N,
    )


def crowd_trust(rows: Rows, pair_voters: Sequence[Sequence[str]], recipe: FitRecipe) -> dict[str, float]:
    """Probability that each person's verdicts mean what they say, by the verdicts of the others."""
    voters = [*rows.voters, *pair_voters]
    people = sorted({person for several in voters for person in several})
    if len(people) < FEWEST_PEOPLE:
        return dict.fromkeys(people, USUAL_TRUST)
    judged_by = judge_rows(rows, pair_voters)
    judge = fit(judged_by, replace(recipe, heads=0))
    folds_P = judged_by.pair_folds_P(recipe.folds)
    unseen_N = judge.unseen(rows.thumbs_ND, judged_by.folds_N(recipe.folds)).double()
    better_P, worse_P = (torch.logit(judge.unseen(side_PD, folds_P).double(), eps=SURE) for side_PD in (rows.better_PD, rows.worse_PD))
    trust = trust_of_voters(
        voters,
        verdicts_N=torch.cat([rows.verdicts_N.double(), torch.ones_like(better_P)]),
        unseen_N=torch.cat([unseen_N, torch.sigmoid(better_P - worse_P)]),
        amounts_N=torch.cat([_first_of_label(rows.episodes), rows.pair_weights_P.double().clamp(max=1.0)]),
    )
    doubted = sum(each < DOUBTED for each in trust.values())
    return trust if 2 * doubted < len(people) else dict.fromkeys(people, USUAL_TRUST)


def judge_rows(rows: Rows, pair_voters: Sequence[Sequence[str]]) -> Rows:
    """The rows as the judge is fitted on them: nobody weighs more than the median person, and folds are made of people. A label of several people
    is in the first one's fold."""
    voters = [*rows.voters, *pair_voters]
    held = held_by_person(torch.cat([rows.weights_N.double() * rows.amounts_N, rows.pair_weights_P.double()]), voters)
    level = statistics.median(held.values()) if held else 0.0
    factors_M = row_factors(voters, {person: min(1.0, level / amount) if amount > 0 else 1.0 for person, amount in held.items()}).float()
    labels, keys = len(rows.voters), rows.fold_keys or rows.episodes
    pair_keys = rows.pair_fold_keys or rows.pair_episodes
    return replace(
        rows,
        weights_N=rows.weights_N * factors_M[:labels],
        pair_weights_P=rows.pair_weights_P * factors_M[labels:],
        fold_keys=[several[0] if several else key for several, key in zip(rows.voters, keys, strict=True)],
        pair_fold_keys=[several[0] if several else key for several, key in zip(pair_voters, pair_keys, strict=True)],
    )


def _first_of_label(episodes: Sequence[str]) -> Tensor:
    """1 for the row of a label itself, 0 for rows of earlier answers that its verdict only reaches; float64 ``[N]``."""
    first = {episode_id: n for n, episode_id in reversed(list(enumerate(episodes)))}
    return torch.tensor([float(first[episode_id] == n) for n, episode_id in enumerate(episodes)], dtype=torch.float64)
