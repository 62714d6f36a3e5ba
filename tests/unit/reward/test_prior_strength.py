"""How hard the weights are pulled to zero: the labels' evidence decides between two pulls, and every label counts in it by its weight."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from reward.evaluation.score_explanation import explain
from reward.fit.head_fit import FitPart, FitRecipe, Rows, fit
from reward.fit.prior_strength import BIAS_VARIANCE, evidence, in_doubt

torch.set_num_threads(1)
RECIPE = FitRecipe(
    features="f" * 64,
    blocks=((60, 1.0), (1, 0.2)),
    heads=4,
    folds=3,
    l2=1.0,
    l2_in_doubt=100.0,
    lower_bound_stds=0.5,
    calibration_half_life_labels=1e6,
)
LENGTH = 60


def drawn(labels: int) -> Tensor:
    return torch.randn(labels, LENGTH + 1, generator=torch.Generator().manual_seed(1))


def rows(features_ND: Tensor, verdicts_N: Tensor) -> Rows:
    verdicts, none = verdicts_N.tolist(), features_ND[:0]
    return Rows(
        thumbs_ND=features_ND,
        verdicts_N=verdicts_N,
        weights_N=torch.ones(len(verdicts)),
        trust_N=torch.ones(len(verdicts)),
        parts=[(FitPart(verdict, 1.0),) for verdict in verdicts],
        episodes=[f"ep-{i}" for i in range(len(verdicts))],
        voters=[("ada",)] * len(verdicts),
        newer_N=torch.arange(len(verdicts)).flip(0),
        complete_N=torch.ones(len(verdicts), dtype=torch.float64),
        better_PD=none,
        worse_PD=none,
        pair_weights_P=torch.ones(0),
        pair_episodes=[],
    )


def by_a_manner(features_ND: Tensor) -> Tensor:
    """Thumbs that three features decide."""
    return (features_ND[:, :3].sum(1) > 0).float()


def by_length_and_chance(features_ND: Tensor) -> Tensor:
    """Thumbs of chance, a little likelier up on a long answer."""
    chances_N = 0.5 + 0.12 * torch.tanh(features_ND[:, LENGTH])
    return (torch.rand(len(features_ND), generator=torch.Generator().manual_seed(2)) < chances_N).float()


def test_the_evidence_is_the_density_of_the_verdicts_under_the_prior() -> None:
    x_ND = drawn(12).double()
    verdicts_N, weights_N = by_a_manner(x_ND).double(), torch.linspace(0.5, 2, 12).double()
    share = float((weights_N * verdicts_N).sum() / weights_N.sum())
    noise_N = 1 / (share * (1 - share) * weights_N)
    z_N = (verdicts_N - share) / (share * (1 - share))

    def density(l2: float) -> float:
        covariance_NN = x_ND @ x_ND.T / l2 + BIAS_VARIANCE + torch.diag(noise_N)
        return float(torch.distributions.MultivariateNormal(torch.zeros(12).double(), covariance_NN).log_prob(z_N))

    found = evidence(x_ND, verdicts_N, weights_N, 1.0) - evidence(x_ND, verdicts_N, weights_N, 50.0)
    assert math.isclose(found, density(1.0) - density(50.0), rel_tol=1e-9)


def test_thumbs_that_features_decide_keep_the_weak_pull() -> None:
    x_ND = drawn(200)
    given = rows(x_ND, by_a_manner(x_ND))
    assert fit(given, RECIPE).checksum() == fit(given, replace(RECIPE, l2_in_doubt=0.5)).checksum()


def test_many_noisy_thumbs_are_pulled_harder_but_for_a_feature_that_is_a_block_of_its_own() -> None:
    x_ND = drawn(500)
    given = rows(x_ND, by_length_and_chance(x_ND))
    weak, strong = fit(given, replace(RECIPE, l2_in_doubt=0.5)), fit(given, RECIPE)
    assert float(strong.gain_D[LENGTH]) == 1.0
    assert torch.equal(strong.gain_D[:LENGTH], weak.gain_D[:LENGTH])
    longer_ND = torch.zeros(1, LENGTH + 1)
    longer_ND[0, LENGTH] = 1.0
    of_length, of_all = (
        [float((m.standardise(x) @ m.heads_KD.mean(0)).std()) for m in (weak, strong)]
        for x in (longer_ND * torch.tensor([[-1.0], [1.0]]), x_ND * (1 - longer_ND))
    )
    assert of_length[1] / of_all[1] > 3 * of_length[0] / of_all[0]


def test_few_thumbs_tell_neither_way_and_leave_things_as_set() -> None:
    x_ND = drawn(19).double()
    ones_N = torch.ones(19).double()
    assert not in_doubt(x_ND, x_ND, by_length_and_chance(x_ND).double(), ones_N, 0.001, 100.0)
    x_ND = drawn(200).double()
    ones_N = torch.ones(200).double()
    assert in_doubt(x_ND, x_ND, by_length_and_chance(x_ND).double(), ones_N, 0.001, 100.0)
    assert not in_doubt(x_ND, x_ND, by_length_and_chance(x_ND).double(), ones_N, 100.0, 100.0)


def test_a_score_in_doubt_is_explained_by_its_labels_exactly() -> None:
    x_ND = drawn(500)
    given = rows(x_ND, by_length_and_chance(x_ND))
    model, one_D = fit(given, RECIPE), x_ND[3]
    said = explain(model, given, RECIPE, one_D)
    logit = float((model.standardise(one_D[None]) @ model.heads_KD.T + model.head_bias_K).mean() / model.temperature + model.offset)
    assert math.isclose(sum(m.logits for m in said.moved) + said.others + said.standing, logit, abs_tol=1e-4)
