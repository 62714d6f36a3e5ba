"""The stopping rule: it cries wolf seldom, however often one looks, and sees a real rise soon. Margins are over many seeds, not of one."""

import random
from collections.abc import Callable

import pytest

from infra.demo.paired_rise import ALPHA, PairedRise
from infra.demo.stopping_rule import REPORT_S, TimePlan

PAIRS = 200
"""Half an hour of pairs and more."""


def shown_with(seed: int, base: float, adapter: Callable[[int, PairedRise], float]) -> int | None:
    """Pairs until the rise is shown, looking after each; the adapter's approval may follow from what was seen."""
    draw, rise = random.Random(seed), PairedRise()
    for pair in range(PAIRS):
        rise = rise.with_pair(draw.random() < base, draw.random() < adapter(pair, rise))
        if rise.shown:
            return pair + 1
    return None


def test_by_hand() -> None:
    """Four pairs say better: who staked c on more than 0 holds (1 + c)^4; the mean over c = 1/40, 3/40, … 39/40 is 6.2, short of 40."""
    four = PairedRise(better=4)
    assert not four.shown
    assert PairedRise(better=8).shown  # (1 + c)^8 is 56.6 on average
    assert not PairedRise(better=8, worse=3).shown
    assert (PairedRise().interval.low, PairedRise().interval.high) == (-1.0, 1.0)
    assert PairedRise(better=6, same=10, worse=2).interval.estimate == pytest.approx(4 / 18)


def test_shown_is_that_the_interval_lies_above_zero_and_sides_may_be_swapped() -> None:
    for better, same, worse in ((20, 10, 3), (7, 30, 2), (3, 3, 3), (0, 40, 9), (30, 0, 0)):
        rise, mirrored = PairedRise(better, same, worse), PairedRise(worse, same, better)
        assert rise.shown == (rise.interval.low > 0)
        assert rise.interval.low == pytest.approx(-mirrored.interval.high)
        assert rise.interval.low <= rise.interval.estimate <= rise.interval.high


@pytest.mark.parametrize("approval", [0.1, 0.25, 0.5])
def test_without_a_rise_one_is_shown_to_one_in_twenty_at_most(approval: float) -> None:
    false_alarms = sum(shown_with(seed, approval, lambda pair, rise: approval) is not None for seed in range(300))
    assert false_alarms <= ALPHA * 300


def test_nor_where_adapters_change_with_what_was_seen_but_are_never_better() -> None:
    def luck_is_followed(pair: int, rise: PairedRise) -> float:
        return 0.3 if rise.better >= rise.worse else 0.1

    assert sum(shown_with(seed, 0.3, luck_is_followed) is not None for seed in range(300)) <= ALPHA * 300


def test_a_rise_by_forty_points_is_shown_within_eighty_pairs_and_one_that_grows_within_a_hundred_and_fifty() -> None:
    at_once = [shown_with(seed, 0.2, lambda pair, rise: 0.6) or PAIRS for seed in range(200)]
    growing = [shown_with(seed, 0.2, lambda pair, rise: 0.2 + 0.4 * min(1.0, pair / 60)) or PAIRS for seed in range(200)]
    assert sum(pairs <= 80 for pairs in at_once) >= 0.95 * 200
    assert sum(pairs <= 150 for pairs in growing) >= 0.95 * 200


def test_a_run_uses_its_time_and_goes_on_only_while_the_rise_is_not_shown() -> None:
    plan = TimePlan(aim_s=720, at_most_s=1800)
    last_s = 720 - 40 - REPORT_S
    assert not plan.learned_enough(last_s - 1, shown=True, exam_s=40, step_s=30, just_published=False)
    assert plan.learned_enough(last_s - 1, shown=True, exam_s=40, step_s=30, just_published=True)  # no other adapter would come in time
    assert plan.learned_enough(last_s, shown=True, exam_s=40, step_s=30, just_published=False)
    assert not plan.learned_enough(1000, shown=False, exam_s=40, step_s=30, just_published=True)
    assert plan.learned_enough(1000, shown=True, exam_s=40, step_s=30, just_published=False)
    assert plan.learned_enough(1800 - 40 - REPORT_S, shown=False, exam_s=40, step_s=30, just_published=False)


def test_the_forecast_names_aim_most_and_on_a_slow_machine_what_it_will_take() -> None:
    assert TimePlan(720, 1800).forecast(0) == "this takes 12 minutes, and longer (at most 30) where the rise in approval is not shown by then"
    assert "about 12 minutes in all" in TimePlan(720, 1800, predicted_step_s=17).forecast(0)
    assert "a step of the learner takes about 60 s here, so about 20 minutes in all" in TimePlan(720, 1800, predicted_step_s=60).forecast(0)
    assert "30 minutes may be too short" in TimePlan(720, 1800, predicted_step_s=200).forecast(0)
