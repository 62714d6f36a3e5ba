"""The evaluator and the fit on synthetic streams: uneven, attacked, drifting, stationary. Every claim holds in each of ten draws."""

import pytest
import torch

from reward.evaluation.calibration import expected_calibration_error
from reward.settings import RewardSettings
from reward.trust.drift_alarm import rise_of_mean
from reward.updater.refitter import Refitter
from tests.support.label_streams import DrawnFeatures, StreamShape, drawn, ranking, updates

torch.set_num_threads(1)
SETTINGS = RewardSettings(heads=2, folds=3)
DRAWS = range(10)


@pytest.mark.parametrize(
    ("good", "buffer", "strength"), [(0.05, 500, 0.5), (0.89, 500, 0.5), (0.95, 500, 0.5), (0.05, 500, 2.0), (0.5, 1000, 2.0), (0.89, 500, 2.0)]
)
def test_probabilities_agree_with_people_however_uneven_their_thumbs_are(good: float, buffer: int, strength: float) -> None:
    """The buffer keeps as many bad labels as good ones where it can, long after; the model's probabilities must not say so."""
    for seed in DRAWS:
        stream = drawn(StreamShape(labels=1200, good=good, strength=strength), seed)
        refitter = Refitter(SETTINGS.model_copy(update={"buffer_labels": buffer}), DrawnFeatures())
        refitter.absorb(stream.entries)
        chances_N = refitter.fitted().score(stream.unseen_ND).mean_N
        assert expected_calibration_error(chances_N.double(), stream.truth_N.double()) <= 0.05


def test_when_the_share_of_good_answers_changes_the_probabilities_follow_within_a_hundred_labels() -> None:
    for seed in DRAWS:
        stream = drawn(StreamShape(labels=600, good=0.2, turn=500, good_after=0.8), seed)
        refitter = Refitter(SETTINGS, DrawnFeatures())
        refitter.absorb(stream.entries)
        assert float(refitter.fitted().score(stream.unseen_ND).mean_N.mean()) > 0.65


CHANCES = {0.6: 4.0, 0.75: 0.9, 0.9: 0.25, 0.97: 0.06}
"""Parameter of a Beta distribution of chances, by the accuracy that a calibrated model has with such chances."""


def losses_of(accuracy: float, labels: int, seed: int, turn: int | None = None) -> list[float]:
    """Brier losses of a calibrated model of this accuracy; from label ``turn`` on people say the opposite."""
    torch.manual_seed(seed)
    chances_N = torch.distributions.Beta(CHANCES[accuracy], CHANCES[accuracy]).sample((labels,)).clamp(0.002, 0.998)  # type: ignore[no-untyped-call]
    up_N = torch.rand(labels) < chances_N
    if turn is not None:
        up_N[turn:] = ~up_N[turn:]
    losses: list[float] = ((chances_N - up_N.float()) ** 2).tolist()
    return losses


@pytest.mark.parametrize("accuracy", sorted(CHANCES))
def test_of_a_hundred_stationary_streams_of_a_thousand_labels_at_most_five_raise_the_alarm(accuracy: float) -> None:
    """However good the model is. Asked after every ten labels, on the newest two hundred."""
    raised = 0
    for seed in range(100):
        losses = losses_of(accuracy, 1000, seed)
        raised += any(rise_of_mean(losses[max(0, end - 200) : end]).alarm for end in range(10, 1001, 10))
    assert raised <= 5


@pytest.mark.parametrize(("accuracy", "labels"), [(0.75, 50), (0.9, 30), (0.97, 20)])
def test_the_alarm_is_raised_soon_after_people_change_their_minds(accuracy: float, labels: int) -> None:
    for seed in DRAWS:
        assert rise_of_mean(losses_of(accuracy, 200 + labels, seed, turn=200)[-200:]).alarm


def test_the_updater_tells_a_turn_and_says_nothing_before() -> None:
    told, falsely = 0, 0
    for seed in DRAWS:
        stream = drawn(StreamShape(labels=500, strength=4.0, turn=400), seed, unseen=10)
        alarms = [refit.evaluation.drift.alarm for refit, _ in updates(stream, SETTINGS, batch=50)]
        told += any(alarms[8:])
        falsely += any(alarms[:8])
    assert (told, falsely) == (10, 0)


def test_one_hostile_voter_in_ten_costs_less_than_two_points_of_ranking() -> None:
    """Five of fifty people say the opposite of what they think, on 900 thumbs."""
    for seed in DRAWS:
        calm, attacked = (drawn(StreamShape(labels=900, hostile=part), seed) for part in (0.0, 0.1))
        ranked = []
        for stream in (calm, attacked):
            refitter = Refitter(SETTINGS, DrawnFeatures())
            refitter.absorb(stream.entries)
            ranked.append(ranking(refitter.fitted(), stream))
        assert ranked[0] - ranked[1] < 0.02
