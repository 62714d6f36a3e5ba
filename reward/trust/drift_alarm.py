"""The drift alarm: a CUSUM test for a rise of the mean (Page 1955) among the model's losses on labels that it had not seen.

The test compares the newer losses of a window with its older ones, in units of their own spread, at the split where they differ most. Without a
change the statistic is the highest point of a Brownian bridge, whatever the losses' distribution (Ploberger and Krämer 1992): the alarm is as rare
for a good model, whose rare losses are large, as for a poor one. Losses must be bounded (Brier), so that one surprise is no drift.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

THRESHOLD = 2.0
"""Chance exceeds it in exp(-2 * 2.0^2), 3 of 10,000 windows; a thousand labels are some dozens of windows that have little in common."""
FEWEST, MARGIN = 40, 5
"""Fewest losses, and fewest on either side of the split."""
LEAST_SPREAD = 0.1
"""Standard deviation of the losses that is assumed at least: a model that was never wrong yet may be wrong once."""


@dataclass(frozen=True)
class Drift:
    """The test's result. ``since`` is the position of the loss after which the mean rose; None without an alarm."""

    statistic: float
    alarm: bool
    since: int | None

    @property
    def sentence(self) -> str:
        """The alarm in words; empty without one."""
        return f"the loss on unseen labels has risen for good since label {self.since} of the window" if self.alarm else ""

    def recent(self, losses: int, within: int) -> bool:
        """True when there is an alarm and fewer than ``within`` of the ``losses`` came after the change."""
        return self.since is not None and losses - self.since < within


def rise_of_mean(losses: Sequence[float]) -> Drift:
    """Test ``losses`` (between 0 and 1, oldest first) for a lasting rise of their mean."""
    n = len(losses)
    if n < FEWEST:
        return Drift(0.0, alarm=False, since=None)
    losses_N = torch.tensor(losses, dtype=torch.float64)
    until_N = torch.arange(1, n + 1, dtype=torch.float64)
    bridge_N = (until_N / n * losses_N.sum() - losses_N.cumsum(0))[MARGIN - 1 : n - MARGIN]
    highest = int(bridge_N.argmax())
    statistic = float(bridge_N[highest]) / (max(LEAST_SPREAD, float(losses_N.std())) * n**0.5)
    alarm = statistic > THRESHOLD
    return Drift(statistic, alarm=alarm, since=highest + MARGIN if alarm else None)
