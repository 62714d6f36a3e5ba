"""The clock, passed in: code takes a ``Clock`` so that tests can stop it or move it."""

from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the time is, in UTC."""

    def now(self) -> datetime: ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class FixedClock:
    """A clock that stands still until ``advance`` moves it."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def now(self) -> datetime:
        return self._at

    def advance(self, **timedelta_arguments: float) -> datetime:
        """Move forward (``advance(seconds=5)``) and return the new time."""
        self._at += timedelta(**timedelta_arguments)
        return self._at
