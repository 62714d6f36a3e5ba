"""The confidence sequence covers the truth at all times at once, and tells a real difference from none."""

import math

import numpy as np
import pytest

from actor.promotion.confidence_sequence import NOTHING, Prior, Side, Uplift, log_evidence, uplift

ALPHA = 0.05


def ever_excluded(p0: float, p1: float, share: float, labels: int, runs: int, seed: int, prior: Prior = NOTHING) -> float:
    """Part of the runs in which the truth was outside the sequence at any time, looked at after every single label."""
    random, difference, wrong = np.random.default_rng(seed), p1 - p0, 0
    for _ in range(runs):
        candidate, production = Side(), Side()
        sides, chances = random.random(labels) < share, random.random(labels)
        looks = set(np.unique(np.geomspace(1, labels, 50).astype(int)).tolist())  # dense early, where it matters
        for n in range(labels):
            verdict = float(chances[n] < (p1 if sides[n] else p0))
            candidate, production = (candidate.with_verdict(verdict), production) if sides[n] else (candidate, production.with_verdict(verdict))
            if n + 1 in looks and log_evidence(candidate, production, difference, prior) >= math.log(1 / ALPHA):
                wrong += 1
                break
    return wrong / runs


@pytest.mark.parametrize(("p0", "p1", "share"), [(0.5, 0.5, 0.5), (0.6, 0.75, 0.1), (0.05, 0.02, 0.2), (0.9, 0.9, 0.05)])
def test_at_all_times_at_once_the_truth_is_inside_in_at_least_95_of_100_runs(p0: float, p1: float, share: float) -> None:
    assert ever_excluded(p0, p1, share, labels=800, runs=100, seed=7) <= ALPHA


@pytest.mark.parametrize("mean", [0.6, 0.95])
def test_a_good_guess_and_a_bad_one_leave_the_promise_as_it_is(mean: float) -> None:
    assert ever_excluded(0.6, 0.6, 0.3, labels=800, runs=100, seed=11, prior=Prior(mean, 30)) <= ALPHA


def test_a_good_guess_makes_the_interval_narrower() -> None:
    sides = Side(200, 150.0), Side(900, 540.0)
    blind, guessed = uplift(*sides, ALPHA), uplift(*sides, ALPHA, Prior(0.6, 30))
    assert blind.low < 0 < guessed.low < guessed.estimate < guessed.high < blind.high


def test_a_test_of_fixed_size_looked_at_as_often_would_fail_that() -> None:
    random, wrong = np.random.default_rng(7), 0
    for _ in range(100):
        sides, good = random.random(800) < 0.5, (random.random(800) < 0.5).astype(float)
        n1, n0 = np.maximum(1, np.cumsum(sides)), np.maximum(1, np.cumsum(~sides))
        m1, m0 = np.cumsum(good * sides) / n1, np.cumsum(good * ~sides) / n0
        error = np.sqrt(m1 * (1 - m1) / n1 + m0 * (1 - m0) / n0)
        wrong += bool((np.abs(m1 - m0)[30:] > 1.96 * error[30:]).any())
    assert wrong / 100 > 3 * ALPHA


def test_verdicts_between_0_and_1_are_covered_too() -> None:
    random, wrong = np.random.default_rng(3), 0
    for _ in range(100):
        candidate, production = Side(), Side()
        for n in range(600):
            verdict = float(random.beta(0.6, 0.4))  # of mean 0.6
            if random.random() < 0.3:
                candidate = candidate.with_verdict(verdict)
            else:
                production = production.with_verdict(verdict)
            if n % 5 == 0 and log_evidence(candidate, production, 0.0) >= math.log(1 / ALPHA):
                wrong += 1
                break
    assert wrong / 100 <= ALPHA


def test_the_interval_is_where_the_evidence_reaches_its_limit() -> None:
    candidate, production = Side(300, 225.0), Side(900, 540.0)
    found = uplift(candidate, production, ALPHA)
    assert found.estimate == pytest.approx(0.15)
    for end in (found.low, found.high):
        assert log_evidence(candidate, production, end) == pytest.approx(math.log(1 / ALPHA), abs=1e-6)
    assert 0 < found.low < found.estimate < found.high < 1


def test_the_evidence_is_least_where_no_other_pair_of_means_fits_better() -> None:
    candidate, production, difference = Side(30, 20.0), Side(70, 31.5), 0.05

    def log_mixture(side: Side, mean: float) -> float:
        a, b = side.total + 0.5, side.labels - side.total + 0.5
        beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) - math.log(math.pi)  # B(1/2, 1/2) is pi
        return beta - side.total * math.log(mean) - (side.labels - side.total) * math.log(1 - mean)

    grid = [log_mixture(production, m) + log_mixture(candidate, m + difference) for m in np.linspace(0.001, 0.949, 5000)]
    assert log_evidence(candidate, production, difference) == pytest.approx(min(grid), abs=1e-4)


def test_without_labels_nothing_is_known_and_with_all_of_one_kind_the_end_is_finite() -> None:
    assert uplift(Side(), Side(), ALPHA) == Uplift(0.0, -1.0, 1.0)
    assert uplift(Side(), Side(1000, 1000.0), ALPHA).low == -1.0
    none, all_ = uplift(Side(300, 0.0), Side(300, 300.0), ALPHA), uplift(Side(300, 300.0), Side(300, 0.0), ALPHA)
    assert none.high < -0.9
    assert all_.low == pytest.approx(-none.high)


def test_more_labels_never_hurt_on_the_way() -> None:
    widths = [uplift(Side(n, 0.7 * n), Side(9 * n, 0.6 * 9 * n), ALPHA) for n in (20, 100, 500, 2500)]
    assert sorted([w.high - w.low for w in widths], reverse=True) == [w.high - w.low for w in widths]
    assert widths[0].low < 0 < widths[-1].low
