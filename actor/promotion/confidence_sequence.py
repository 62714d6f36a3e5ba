"""How much better one side is than the other, at every moment: a confidence sequence for the difference of two means of verdicts in [0, 1].

A fixed-size test that is repeated after every thumb gives a false alarm sooner or later. A confidence sequence covers the truth at *all* times at
once with probability 1 - alpha, so one may look at any time and stop at any time (Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform,
nonparametric, nonasymptotic confidence sequences").

For one side with ``n`` verdicts of sum ``S``, Robbins' mixture with a Beta(a, b) prior (ibid., the beta-binomial mixture) is

    M(m) = B(S + a, n - S + b) / B(a, b) / (m^S (1 - m)^(n - S)),

a nonnegative supermartingale of mean at most 1 when the mean is ``m``. For verdicts of 0 and 1 it is exact; for verdicts between, each
factor (q/m)^x ((1-q)/(1-m))^(1-x) is at most x q/m + (1-x) (1-q)/(1-m), whose mean is 1: the bound holds a fortiori. Where each
verdict belongs to one side, and the side is chosen before it is known, the product of both sides' M is one too, and by Ville's
inequality it ever reaches 1/alpha with probability at most alpha. What the interval covers are all differences d = m1 - m0 whose
least product is below 1/alpha. It depends on counts and sums alone: order and restarts change nothing. The prior may be anything that
was fixed before the first label: a good guess (what people said of production until then) makes the interval narrower, a bad one
wider, and neither makes it false.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

_HALVINGS = 50
_SMALLEST = 1e-9


@dataclass(frozen=True)
class Side:
    """Verdicts on one side: ``labels`` of them, each between 0 and 1, with sum ``total``."""

    labels: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Mean verdict; 0.5 without labels."""
        return self.total / self.labels if self.labels else 0.5

    def with_verdict(self, verdict: float) -> "Side":
        """This side with one more verdict."""
        return Side(self.labels + 1, self.total + verdict)


@dataclass(frozen=True)
class Prior:
    """Prior of both means before the first label, worth ``weight`` labels. The default is uninformative."""

    mean: float = 0.5
    weight: float = 1.0

    @property
    def beta(self) -> tuple[float, float]:
        """Its parameters."""
        mean = min(max(self.mean, 0.02), 0.98)
        return self.weight * mean, self.weight * (1 - mean)


NOTHING = Prior()


@dataclass(frozen=True)
class Uplift:
    """Mean of the candidate minus mean of production, with its interval; as parts, so 0.05 is five points."""

    estimate: float
    low: float
    high: float


def uplift(candidate: Side, production: Side, alpha: float, prior: Prior = NOTHING) -> Uplift:
    """The difference and its confidence sequence at level ``1 - alpha``, valid at every moment at which it is looked at."""
    estimate, limit = candidate.mean - production.mean, math.log(1 / alpha)
    # log_evidence against a difference is convex in it, and least at the estimate: on either side it crosses the limit once, or nowhere
    low = _crossing(lambda d: log_evidence(candidate, production, d, prior) - limit, estimate, -1.0)
    high = _crossing(lambda d: log_evidence(candidate, production, d, prior) - limit, estimate, 1.0)
    return Uplift(estimate, low, high)


def log_evidence(candidate: Side, production: Side, difference: float, prior: Prior = NOTHING) -> float:
    """Log of the evidence (an e-value) against the claim that the means differ by exactly that, in nats; minimal over the possible means."""
    low, high = max(0.0, -difference) + _SMALLEST, min(1.0, 1.0 - difference) - _SMALLEST
    for _ in range(_HALVINGS if low < high else 0):  # the slope of the sum is increasing: its zero is the least point
        middle = (low + high) / 2
        if _slope(production, middle) + _slope(candidate, middle + difference) < 0:
            low = middle
        else:
            high = middle
    middle = (low + high) / 2
    return _log_mixture(production, _inside(middle), prior) + _log_mixture(candidate, _inside(middle + difference), prior)


def _log_mixture(side: Side, mean: float, prior: Prior) -> float:
    good, bad, (a, b) = side.total, side.labels - side.total, prior.beta
    gained = _log_beta(good + a, bad + b) - _log_beta(a, b)
    return gained - good * math.log(mean) - bad * math.log1p(-mean)


def _slope(side: Side, mean: float) -> float:
    mean = _inside(mean)
    return -side.total / mean + (side.labels - side.total) / (1 - mean)


def _inside(mean: float) -> float:
    return min(max(mean, _SMALLEST), 1 - _SMALLEST)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _crossing(above: Callable[[float], float], inside: float, outside: float) -> float:
    """Where the function crosses 0 between a point below and the end of the range; the end, where it never does."""
    if above(outside) <= 0:
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if above(middle) <= 0:
            inside = middle
        else:
            outside = middle
    return outside
