"""The drift alarm: a Page-Hinkley test (Page 1954; Hinkley 1971) on the model's losses on labels that it had not seen."""

from collections.abc import Sequence
from dataclasses import dataclass


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


def page_hinkley(losses: Sequence[float], allowance: float = 0.05, threshold: float = 8.0, fewest: int = 30) -> Drift:
    """Watch ``losses`` (nats, oldest first) for a lasting rise of their mean.

    Each loss adds (loss - mean so far - ``allowance``) to a sum. The alarm is raised when the sum is ``threshold`` above its lowest point: one bad
    label cannot do that, fifteen labels in a row that are half a nat worse can. The first ``fewest`` losses only build the mean.
    """
    mean = total = lowest = 0.0
    lowest_at = 0
    for n, loss in enumerate(losses, start=1):
        mean += (loss - mean) / n
        if n <= fewest:
            continue
        total += loss - mean - allowance
        if total < lowest:
            lowest, lowest_at = total, n
        if total - lowest > threshold:
            return Drift(total - lowest, alarm=True, since=max(lowest_at, fewest))
    return Drift(total - lowest, alarm=False, since=None)
