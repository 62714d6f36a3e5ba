"""Confidence intervals of shares and of differences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; all three in the unit of what was measured."""

    estimate: float
    low: float
    high: float


def share(successes: Sequence[bool]) -> Interval:
    """A proportion with Wilson's score interval (Wilson 1927), 95 %."""
    n, z = len(successes), 1.959964
    if n == 0:
        return Interval(0.0, 0.0, 1.0)
    p = sum(successes) / n
    centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * ((p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5) / (1 + z * z / n)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def paired_difference(before: Sequence[bool], after: Sequence[bool], seed: int = 0, resamples: int = 10_000) -> Interval:
    """``after`` minus ``before`` on the same questions, with a bootstrap interval over the questions (percentile, 95 %)."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} answers before but {len(after)} after")
    difference_N = np.asarray(after, float) - np.asarray(before, float)
    picks_RN = np.random.default_rng(seed).integers(0, len(difference_N), (resamples, len(difference_N)))
    low, high = np.quantile(difference_N[picks_RN].mean(1), [0.025, 0.975])
    return Interval(float(difference_N.mean()), float(low), float(high))
