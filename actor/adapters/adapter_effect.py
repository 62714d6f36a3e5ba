"""Measures how much of an adapter's effect shows in a replica's log-probabilities, with an interval from the replica's own noise.

An engine in another precision never gives exactly the learner's log-probabilities. So the replica also computes the base's: its differences from
the learner there are its noise, token by token. What the adapter adds to the base (its *step*) is regressed on the learner's step. The slope is
a *share*: 1 for the adapter, 0 for the base instead of it, 0.5 for half of it. The same is done for each part of the step that may be missing
on its own.

Shapes: ``N`` tokens of all probes. All log-probabilities and noises in nats.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

WIDTH = 3.0
"""Half-width of an interval in standard errors: on each side, one in 700 estimates lies outside."""
FEW_TOKENS = 7.5
"""Additional width of a Student interval of that level, times the number of tokens (Cornish-Fisher: (z³ + z) / 4)."""
LEAST_PART = 0.1
"""A part smaller than this share of the whole step (root mean squares) is not tested here: its tensors are compared instead."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Readings:
    """Log-probabilities of learner and replica for the same N tokens."""

    base_N: Array
    """Learner, adapter off."""
    adapter_N: Array
    """Learner, adapter on."""
    replica_base_N: Array
    replica_adapter_N: Array
    without: Mapping[str, Array] = field(default_factory=dict)
    """Learner, with a group of the adapter's tensors off; by the group's name."""
    parent_N: Array | None = None
    """Learner, with the adapter published before."""
    exact: bool = False
    """True when the learner computed in float32; then its own noise is negligible."""

    @property
    def noise_nats(self) -> float:
        """Noise: root mean square of the difference between the replica's base and the learner's."""
        return _rms(self.replica_base_N - self.base_N)

    @property
    def step_nats(self) -> float:
        """Root mean square of the learner's step."""
        return _rms(self.adapter_N - self.base_N)


@dataclass(frozen=True)
class Share:
    """How much of one part of the step the replica shows: 1 if present, 0 if missing, with the interval ``low`` to ``high``."""

    part: str
    estimate: float
    low: float
    high: float
    size_nats: float = math.inf
    """Size of the part: root mean square in the learner."""


def shares(readings: Readings) -> list[Share]:
    """First the share of the whole step from the base, then of each part that may be missing on its own.

    For a group of tensors: what the replica shows beyond the step without the group, along what the group adds. For the newest update: what it
    shows along the part of the update that is orthogonal to the step before; the first share already measures the length of the step.
    """
    r = readings
    step_N, shown_N = r.adapter_N - r.base_N, r.replica_adapter_N - r.replica_base_N
    found = [_share("the adapter's step from the base", shown_N, step_N, r, of_base=True)]
    for group, without_N in sorted(r.without.items()):
        part_N = r.adapter_N - without_N
        if _rms(part_N) >= LEAST_PART * r.step_nats:
            found.append(_share(f"what the adapter on {group} adds", shown_N - (without_N - r.base_N), part_N, r))
    if r.parent_N is not None:
        before_N, update_N = r.parent_N - r.base_N, r.adapter_N - r.parent_N
        found.append(_share("the update since the adapter before it", _beside(shown_N, before_N), _beside(update_N, before_N), r))
    return found


def stray_nats(readings: Readings) -> float:
    """Root mean square of the part of the replica's step that the learner's step does not explain."""
    r = readings
    return _rms((r.replica_adapter_N - r.replica_base_N) - (r.adapter_N - r.base_N))


def _share(part: str, shown_N: Array, wanted_N: Array, readings: Readings, of_base: bool = False) -> Share:
    """Slope of ``shown`` on ``wanted`` through the origin.

    The standard error is the larger of two: from the residuals by token (HC3: MacKinnon and White 1985), which covers noise that differs between
    tokens; and from the base's noise, which is reliable with few tokens. A learner in low precision has noise in ``wanted`` too. It biases the
    slope towards 0, by at most the share of ``wanted`` that can be noise; and when ``shown`` was computed from a noisy value of the learner, it
    raises the slope by at most half of that. The interval is widened by both.
    """
    square = float(wanted_N @ wanted_N)
    if square == 0.0:
        return Share(part, math.nan, -math.inf, math.inf)
    variance = 2 * readings.noise_nats**2  # a step is the difference of two values
    estimate = float(shown_N @ wanted_N) / square
    leverage_N = wanted_N**2 / square
    residual_N = (shown_N - estimate * wanted_N) / np.maximum(1 - leverage_N, 1e-6)
    error = math.sqrt(max(float(wanted_N**2 @ residual_N**2) / square**2, variance / square))
    reach = error * (WIDTH + FEW_TOKENS * float(leverage_N @ leverage_N))
    noisy = 0.0 if readings.exact else variance * len(wanted_N) / square
    low, high = estimate - reach - (0.0 if of_base else noisy / 2), estimate + reach
    if high > 0:
        high = high / (1 - noisy) if noisy < 1 else math.inf
    return Share(part, estimate, low, high, _rms(wanted_N))


def _beside(values_N: Array, direction_N: Array) -> Array:
    """The values without their component along a direction."""
    square = float(direction_N @ direction_N)
    return values_N - direction_N * (float(values_N @ direction_N) / square) if square else values_N


def _rms(values_N: Array) -> float:
    return float(np.sqrt(np.mean(values_N**2)))
