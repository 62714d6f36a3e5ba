"""Has approval risen? Judged while the ring learns, so that one may look at any time and stop at any time.

Now and then a held-out question is put to the base and to the adapter that is served: a pair. It says better (the adapter's answer is liked,
the base's is not), worse, or the same. Neither answer is thumbed or learned from. So while no adapter is better than the base, no pair is
expected to say better rather than worse, whatever was seen before and however the adapters change. A gambler who stakes the part ``c`` of
what they have on "better by more than m" multiplies it in each pair by

    1 + c (d - m) / (1 + m),    d = 1 better, 0 the same, -1 worse,

and expects to gain nothing while the truth is m or less. By Ville's inequality such a gambler ever holds 1/alpha times the first stake with
probability alpha at most. The interval is what no gambler has refuted: those who bet on more (each ``c`` with an equal share of the stake)
give its lower end, those who bet on less its upper end (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by
betting"). It is always valid, like the canary's (``actor/promotion/confidence_sequence.py``), but that one is for two crowds who ask what
they like; pairs are for questions that one may choose, and show the same rise with fewer answers.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

from infra.demo.intervals import Interval

ALPHA = 0.05
"""Both ends together: a rise that there is not is shown with half of that probability at most."""
STAKES = tuple((k + 0.5) / 20 for k in range(20))
_HALVINGS = 40


@dataclass(frozen=True)
class PairedRise:
    """What the pairs said so far. Their order changes nothing."""

    better: int = 0
    same: int = 0
    worse: int = 0

    def with_pair(self, base_liked: bool, adapter_liked: bool) -> "PairedRise":
        """One more pair."""
        says = adapter_liked - base_liked
        return PairedRise(self.better + (says > 0), self.same + (says == 0), self.worse + (says < 0))

    @property
    def pairs(self) -> int:
        """How many there are."""
        return self.better + self.same + self.worse

    @cached_property
    def interval(self) -> Interval:
        """Adapters minus base, as parts, with its 95 % interval: from -1 to 1 without pairs."""
        if not self.pairs:
            return Interval(0.0, -1.0, 1.0)
        estimate = (self.better - self.worse) / self.pairs
        mirrored = PairedRise(self.worse, self.same, self.better)
        return Interval(estimate, self._refuted_below(estimate), -mirrored._refuted_below(-estimate))

    @property
    def shown(self) -> bool:
        """True when the interval lies above 0."""
        return self._log_wealth(0.0) >= math.log(2 / ALPHA)

    def __str__(self) -> str:
        found = self.interval
        return f"{found.estimate * 100:+.0f} points [{found.low * 100:+.0f}, {found.high * 100:+.0f}] by {self.pairs} pairs"

    def _refuted_below(self, estimate: float) -> float:
        """The smallest difference that those who bet on more have not refuted; what they hold falls as it grows."""
        low, high = -1.0, estimate
        if low == high:
            return low
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._log_wealth(middle) >= math.log(2 / ALPHA):
                low = middle
            else:
                high = middle
        return low

    def _log_wealth(self, difference: float) -> float:
        """Log of the mean over all stakes of what the gambler holds who began with 1 and bet on more than ``difference``."""
        held = [self.better * better + self.same * same + self.worse * worse for better, same, worse in _gains(difference)]
        most = max(held)
        return most + math.log(sum(math.exp(each - most) for each in held) / len(held))


@lru_cache(maxsize=64)
def _gains(difference: float) -> tuple[tuple[float, float, float], ...]:
    """By stake, the log of what a pair that says better, the same or worse multiplies it by."""
    better, same, worse = ((1 + d) / (1 + difference) - 1 for d in (1, 0, -1))
    return tuple((math.log1p(stake * better), math.log1p(stake * same), math.log1p(stake * worse)) for stake in STAKES)
