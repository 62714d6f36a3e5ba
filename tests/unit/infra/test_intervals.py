"""Intervals against values computed by hand or published."""

import pytest

from infra.demo.intervals import paired_difference, share


def test_wilsons_interval_matches_its_formula() -> None:
    found = share([True] * 8 + [False] * 2)  # (0.8 + 0.19207) / 1.38415 ± 1.959964 · sqrt(0.016 + 0.0096036) / 1.38415
    assert found.estimate == 0.8
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_nothing_measured_is_no_knowledge() -> None:
    assert (share([]).low, share([]).high) == (0.0, 1.0)


def test_a_difference_is_paired() -> None:
    before, after = [False] * 30 + [True] * 10, [True] * 40
    found = paired_difference(before, after)
    assert found.estimate == 0.75
    assert 0.6 < found.low < 0.75 < found.high <= 0.9
    assert paired_difference(after, after).high == 0.0


def test_no_difference_is_not_called_a_rise() -> None:
    before = [i % 2 == 0 for i in range(40)]
    after = [i % 2 == 1 for i in range(40)]
    assert paired_difference(before, after).low < 0 < paired_difference(before, after).high


def test_answers_must_pair_up() -> None:
    with pytest.raises(ValueError, match="3 answers before but 2 after"):
        paired_difference([True] * 3, [True] * 2)
