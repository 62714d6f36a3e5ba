"""The reward model: scores, files, fitting, and the figures told about it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reward.evaluation.calibration import area_under_curve, calibration, expected_calibration_error, log_loss, no_worse
from reward.fit.head_fit import FitPart, FitRecipe, Rows, bootstrap, fit
from reward.fit.logistic_solver import by_features, by_rows, solve
from reward.fit.platt_scaling import platt
from reward.fit.reward_model import RewardModel, fold_of
from streams.core.errors import BadArtifact
from streams.core.events import Calibration

torch.set_num_threads(1)  # matrices this small are slower on two

RECIPE = FitRecipe(
    features="f" * 64, blocks=((3, 1.0), (3, 0.5)), heads=4, folds=3, l2=1.0, l2_in_doubt=1.0, lower_bound_stds=0.5, calibration_half_life_labels=50
)


def rows(features_ND: Tensor, verdicts: Sequence[float], better_PD: Tensor | None = None, worse_PD: Tensor | None = None) -> Rows:
    none = features_ND[:0]
    pairs = 0 if better_PD is None else len(better_PD)
    return Rows(
        thumbs_ND=features_ND,
        verdicts_N=torch.tensor(verdicts),
        weights_N=torch.ones(len(verdicts)),
        trust_N=torch.ones(len(verdicts)),
        parts=[(FitPart(verdict, 1.0),) for verdict in verdicts],
        episodes=[f"ep-{i}" for i in range(len(verdicts))],
        voters=[("ada",)] * len(verdicts),
        newer_N=torch.arange(len(verdicts)).flip(0),
        complete_N=torch.ones(len(verdicts), dtype=torch.float64),
        better_PD=none if better_PD is None else better_PD,
        worse_PD=none if worse_PD is None else worse_PD,
        pair_weights_P=torch.ones(pairs),
        pair_episodes=[f"pair-{i}" for i in range(pairs)],
    )


def learnable(count: int = 60) -> tuple[Tensor, list[float]]:
    """The first feature decides."""
    features_ND = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    return features_ND, [float(row[0] > 0) for row in features_ND]


@pytest.fixture
def model() -> RewardModel:
    return fit(rows(*learnable()), RECIPE)


def test_what_the_labels_say_is_learned(model: RewardModel) -> None:
    features_ND, verdicts = learnable()
    scores = model.score(features_ND)
    assert float(((scores.mean_N > 0.5) == (torch.tensor(verdicts) > 0.5)).float().mean()) > 0.9
    assert scores.mean_N.shape == scores.std_N.shape == scores.lower_N.shape == (60,)


def test_the_reward_lies_below_the_mean_by_the_ensembles_disagreement(model: RewardModel) -> None:
    scores = model.score(torch.randn(20, 6))
    assert bool((scores.std_N > 0).all())
    torch.testing.assert_close(scores.lower_N, (scores.mean_N - 0.5 * scores.std_N).clamp(0, 1))
    assert bool(((scores.mean_N > 0) & (scores.mean_N < 1)).all())


def test_one_odd_answer_cannot_outshout_the_rest(model: RewardModel) -> None:
    torch.testing.assert_close(model.score(torch.full((1, 6), 1e30)).mean_N, model.score(torch.full((1, 6), 1e6)).mean_N)


def test_a_comparison_teaches_without_any_word_on_how_good_either_is() -> None:
    features_ND, _ = learnable(20)
    better = torch.zeros(30, 6)
    better[:, 1] = 1.0
    model = fit(rows(features_ND, [0.0, 1.0] * 10, better, -better), RECIPE)
    probe = torch.zeros(2, 6)
    probe[0, 1], probe[1, 1] = 1.0, -1.0
    scores = model.score(probe)
    assert scores.mean_N[0] > scores.mean_N[1] + 0.1


def test_each_head_sits_at_its_optimum() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = (torch.rand(40, generator=generator, dtype=torch.float64) > 0.5).double()
    weights = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    w_HD, b_H = solve(x, torch.ones(40, dtype=torch.float64), y, weights, l2=0.7)
    for h in range(3):
        p = torch.sigmoid(x @ w_HD[h] + b_H[h])
        gradient = x.T @ (weights[:, h] * (p - y)) + 0.7 * w_HD[h]
        assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize(("rows_", "features"), [(30, 80), (80, 30)])
def test_the_search_among_rows_and_the_search_among_features_end_at_one_optimum(rows_: int, features: int) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.cat([torch.randn(rows_, features, generator=generator, dtype=torch.float64), torch.ones(rows_, 1, dtype=torch.float64)], 1)
    y = torch.rand(rows_, generator=generator, dtype=torch.float64)
    weights = torch.rand(rows_, 4, generator=generator, dtype=torch.float64) * 3
    weights[: rows_ // 3, 0] = 0.0
    ridge = torch.full((features + 1,), 0.7, dtype=torch.float64)
    ridge[-1] = 0.01
    ours, others = by_rows(x, ridge, y, weights), by_features(x, ridge, y, weights)
    torch.testing.assert_close(ours, others, rtol=0, atol=1e-5)
    gradient = x.T @ (weights * (torch.sigmoid(x @ ours) - y[:, None])) + ridge[:, None] * ours
    assert float(gradient.abs().max()) < 1e-6


def test_one_label_by_hand() -> None:
    """One row x = 1, target 1, no bias: sigmoid(-w) = l2 w; at l2 = 0.5 that is w = 0.7388…"""
    one = torch.ones(1, 1, dtype=torch.float64)
    w_HD, _ = solve(one, torch.zeros(1, dtype=torch.float64), one[0], one, l2=0.5)
    w = float(w_HD[0, 0])
    assert abs(1 / (1 + torch.e**w) - 0.5 * w) < 1e-9


def test_a_fold_head_has_never_seen_its_fold() -> None:
    features_ND, verdicts = learnable()
    turned = [1 - v if fold_of(f"ep-{i}", 3) == 1 else v for i, v in enumerate(verdicts)]
    before, after = fit(rows(features_ND, verdicts), RECIPE), fit(rows(features_ND, turned), RECIPE)
    torch.testing.assert_close(before.folds_FD[1], after.folds_FD[1], rtol=0, atol=1e-6)
    assert float((before.folds_FD[0] - after.folds_FD[0]).abs().max()) > 0.1
    assert float((before.heads_KD - after.heads_KD).abs().max()) > 0.1


def test_bootstrap_weights_average_one_and_depend_on_the_id_alone() -> None:
    weights = bootstrap([f"ep-{i}" for i in range(2000)], 8)
    assert abs(float(weights.mean()) - 1) < 0.03
    assert torch.equal(bootstrap(["ep-7"], 8)[0], weights[7])
    assert not torch.equal(weights[7], weights[8])


def test_overconfident_logits_are_cooled_and_timid_ones_heated() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(4000, generator=generator, dtype=torch.float64)
    verdicts = (torch.rand(4000, generator=generator, dtype=torch.float64) < torch.sigmoid(truth)).double()
    ones = torch.ones(4000, dtype=torch.float64)
    assert platt(truth * 3, verdicts, ones)[0] == pytest.approx(3, rel=0.1)
    assert platt(truth / 3, verdicts, ones)[0] == pytest.approx(1 / 3, rel=0.1)
    assert platt(truth + 1, verdicts, ones)[1] == pytest.approx(-1, abs=0.1)


def test_two_labels_of_chance_hardly_move_the_temperature() -> None:
    against = platt(torch.tensor([2.0, -2.0]).double(), torch.tensor([0.0, 1.0]).double(), torch.ones(2).double())
    assert 1 < against[0] < 3


def test_what_was_saved_is_what_is_loaded(model: RewardModel, tmp_path: Path) -> None:
    loaded = RewardModel.load(model.save(tmp_path / "model"))
    assert loaded.checksum() == model.checksum()
    probe = torch.randn(5, 6)
    assert torch.equal(loaded.score(probe).lower_N, model.score(probe).lower_N)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["head.json", "head.safetensors"]
    again = model.save(tmp_path / "again")
    assert (again / "head.safetensors").read_bytes() == (tmp_path / "model" / "head.safetensors").read_bytes()


@pytest.mark.parametrize("spoil", ["no_json", "no_weights", "pickled", "other_format", "truncated", "short_bias", "not_a_number", "cold", "extra"])
def test_a_spoiled_artifact_is_refused(model: RewardModel, tmp_path: Path, spoil: str) -> None:
    folder = model.save(tmp_path / "model")
    weights, about = folder / "head.safetensors", folder / "head.json"
    if spoil == "no_json":
        about.unlink()
    elif spoil == "no_weights":
        weights.unlink()
    elif spoil == "pickled":
        torch.save({"heads_KD": model.heads_KD}, weights)
    elif spoil == "truncated":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif spoil == "short_bias":
        replace(model, head_bias_K=model.head_bias_K[:-1]).save(folder)
    elif spoil == "not_a_number":
        replace(model, fold_bias_F=model.fold_bias_F * float("nan")).save(folder)
    elif spoil == "extra":
        about.write_text(json.dumps({**json.loads(about.read_text()), "temperature": "hot"}))
    else:
        change = {"other_format": {"format": 2}, "cold": {"temperature": 0}}[spoil]
        about.write_text(json.dumps({**json.loads(about.read_text()), **change}))
    with pytest.raises(BadArtifact):
        RewardModel.load(folder)


def test_the_checksum_notices_every_part(model: RewardModel) -> None:
    others = [
        replace(model, temperature=model.temperature + 0.1),
        replace(model, offset=model.offset + 0.1),
        replace(model, lower_bound_stds=1.0),
        replace(model, features="0" * 64),
        *(replace(model, **{name: getattr(model, name) + 1}) for name in ("centre_D", "spread_D", "gain_D", "heads_KD", "head_bias_K", "folds_FD")),
    ]
    assert len({m.checksum() for m in [model, *others]}) == len(others) + 1


def test_calibration_by_hand() -> None:
    """Chances .95 .85 .35 .15 on verdicts 1 0 1 0: two of four right; Brier (.0025 + .7225 + .4225 + .0225) / 4; each alone in its bin."""
    told = calibration(torch.tensor([0.95, 0.85, 0.35, 0.15]), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert (told.labels, told.accuracy, told.baseline) == (4, 0.5, 0.5)
    assert told.brier == pytest.approx(0.2925)
    assert told.ece == pytest.approx((0.05 + 0.85 + 0.65 + 0.15) / 4)


def test_log_loss_stands_beside_that_of_always_guessing_the_share_of_good_ones() -> None:
    """Chances .9 .6 .2 on verdicts 1 0 0: -(ln .9 + ln .4 + ln .8) / 3; one of three is good: -(ln 1/3 + 2 ln 2/3) / 3."""
    told = calibration(torch.tensor([0.9, 0.6, 0.2]), torch.tensor([1.0, 0.0, 0.0]))
    assert told.log_loss == pytest.approx(0.41493, abs=1e-5)
    assert told.baseline_log_loss == pytest.approx(0.63651, abs=1e-5)


def test_a_calibration_from_before_log_loss_was_told_is_still_read() -> None:
    old = Calibration.model_validate({"labels": 3, "accuracy": 0.5, "baseline": 0.5, "brier": 0.2, "ece": 0.1})
    assert (old.log_loss, old.baseline_log_loss) == (None, None)


def test_labels_that_share_a_bin_are_averaged_before_they_count_as_errors() -> None:
    assert expected_calibration_error(torch.full((4,), 0.75).double(), torch.tensor([1.0, 1.0, 1.0, 0.0]).double()) == pytest.approx(0)
    assert expected_calibration_error(torch.tensor([1.0]).double(), torch.tensor([1.0]).double()) == 0


def test_the_chance_to_rank_a_good_answer_above_a_bad_one_by_hand() -> None:
    """Good .9 .4 against bad .4 .1: three of four pairs right, one tied: 3.5 / 4."""
    good = torch.tensor([True, True, False, False])
    assert area_under_curve(torch.tensor([0.9, 0.4, 0.4, 0.1]), good) == pytest.approx(3.5 / 4)
    assert area_under_curve(torch.tensor([0.9, 0.4]), torch.tensor([True, True])) is None


def test_when_the_policy_gets_better_the_chances_follow_the_newest_labels() -> None:
    features_ND = torch.randn(200, 6, generator=torch.Generator().manual_seed(3))
    verdicts = [0.0 if i < 100 and i % 5 else 1.0 if i >= 100 and i % 5 else float(i < 100) for i in range(200)]  # 20 % good, then 80 %
    model = fit(rows(features_ND, verdicts), replace(RECIPE, calibration_half_life_labels=20))
    assert float(model.score(features_ND[100:]).mean_N.mean()) > 0.65


def test_without_labels_nothing_is_claimed() -> None:
    assert calibration(torch.tensor([]), torch.tensor([])).labels == 0


def test_a_version_is_worse_only_beyond_the_tolerance() -> None:
    verdicts = torch.tensor([1.0, 0.0] * 50)
    good = log_loss(torch.tensor([0.9, 0.1] * 50), verdicts)
    noise = torch.linspace(-0.1, 0.1, 100).double()
    assert no_worse(good, good, 0.0)
    assert no_worse(good + noise, good, 1.0)
    assert not no_worse(good + noise + 0.05, good, 1.0)
    assert no_worse(good - 0.05, good, 0.0)
    assert not no_worse(good + 1e-3, good, 1.0)  # a difference without any spread is no accident
    assert no_worse(good[:1] + 9, good[:1], 1.0)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50))
@settings(max_examples=50, deadline=None)
def test_calibration_stays_in_its_bounds(thousandths: list[int]) -> None:
    verdicts = torch.tensor([float(i % 2) for i in range(len(thousandths))])
    told = calibration(torch.tensor(thousandths) / 1000, verdicts)
    assert 0 <= told.ece <= 1
    assert 0 <= told.brier <= 1
