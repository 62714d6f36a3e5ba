"""The clock, passed in: code takes a ``Clock`` so that tests can stop it or move it."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the time is."""

    def now(self) -> datetime:
        """In UTC. It jumps when the machine's clock is set."""

    def monotonic_s(self) -> float:
        """Seconds since some moment. They only grow: for spans of time."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()


class FixedClock:
    """A clock that stands still until ``advance`` moves it."""

    def __init__(self, at: datetime) -> None:
        self._began = self._at = at

    def now(self) -> datetime:
        return self._at

    def monotonic_s(self) -> float:
        return (self._at - self._began).total_seconds()

    def advance(self, **timedelta_arguments: float) -> datetime:
        """Move forward (``advance(seconds=5)``) and return the new time."""
        self._at += timedelta(**timedelta_arguments)
        return self._at
