"""Has approval risen? A test that may be checked, and stopped, at any time while the ring learns.

At intervals, a held-out question is asked of the base and of the served adapter: a pair. Its result is better (only the adapter's answer is
liked), worse (only the base's is), or the same. The answers get no thumbs and are not learned from. So as long as no adapter is better than
the base, better is at most as likely as worse in each pair, whatever happened before and however the adapters change. The test is betting: a
gambler who stakes the fraction ``c`` of their money on "better by more than m" multiplies it in each pair by

    1 + c (d - m) / (1 + m),    d = 1 better, 0 the same, -1 worse,

and cannot expect a gain when the truth is m or less. By Ville's inequality, such a gambler ever holds 1/alpha times the starting money with
probability at most alpha. The interval contains the differences that no gambler has refuted: bets on more (money split equally over all ``c``)
give its lower end, bets on less its upper end (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"). It is
valid at any time, like the canary's (``actor/promotion/confidence_sequence.py``). The canary compares two groups of people with their own
questions; pairs need chosen questions, and show the same rise with fewer answers.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

from infra.demo.intervals import Interval

ALPHA = 0.05
"""Error probability of both ends together: without a rise, one is shown with at most half of it."""
STAKES = tuple((k + 0.5) / 20 for k in range(20))
_HALVINGS = 40


@dataclass(frozen=True)
class PairedRise:
    """Results of all pairs. Their order does not matter."""

    better: int = 0
    same: int = 0
    worse: int = 0

    def with_pair(self, base_liked: bool, adapter_liked: bool) -> "PairedRise":
        """These results and one more pair."""
        says = adapter_liked - base_liked
        return PairedRise(self.better + (says > 0), self.same + (says == 0), self.worse + (says < 0))

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.better + self.same + self.worse

    @cached_property
    def interval(self) -> Interval:
        """Approval of adapters minus approval of the base (0.1 is 10 points), with its 95 % interval; -1 to 1 without pairs."""
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
        """The smallest difference that bets on more have not refuted, by bisection: their money falls as the difference grows."""
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
        """Log of the mean wealth over all stakes, of gamblers who started with 1 and bet on more than ``difference``."""
        held = [self.better * better + self.same * same + self.worse * worse for better, same, worse in _gains(difference)]
        most = max(held)
        return most + math.log(sum(math.exp(each - most) for each in held) / len(held))


@lru_cache(maxsize=64)
def _gains(difference: float) -> tuple[tuple[float, float, float], ...]:
    """For each stake, the log of the factors by which better, the same and worse multiply the money."""
    better, same, worse = ((1 + d) / (1 + difference) - 1 for d in (1, 0, -1))
    return tuple((math.log1p(stake * better), math.log1p(stake * same), math.log1p(stake * worse)) for stake in STAKES)
