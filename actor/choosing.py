"""What a replica should serve, from what the log has said: pure, but for asking whether an adapter proves itself here."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from actor.promotion import Standing
from actor.routing import Route
from streams.events import AdapterVersion, Event, Promotion
from streams.topics import ADAPTERS, PROMOTIONS, Topic

Has = Callable[[AdapterVersion], bool]
"""Load and attest an adapter, unless it is; False when it was refused."""
REFUSED_FOR_S = 60.0
"""What was refused is tried again so late: an engine may have been too busy to answer."""


class Newest:
    """The newest adapter that proves itself. What it skips is never loaded; an older one has its turn only when a newer one is refused."""

    topics: tuple[Topic[Any], ...] = (ADAPTERS,)
    moved_at: datetime | None = None

    def __init__(self, policy: str, most_refusals: int) -> None:
        self._policy, self._most_refusals = policy, most_refusals
        self._live = 0
        self._waiting: dict[int, AdapterVersion] = {}

    def note(self, event: Event) -> None:
        """One more event of the log."""
        if isinstance(event, AdapterVersion) and event.policy == self._policy and event.version > self._live:
            self._waiting[event.version] = event

    def choose(self, route: Route, has: Has) -> Route:
        """What to serve from now on."""
        for _ in range(min(self._most_refusals, len(self._waiting))):
            adapter = self._waiting[max(self._waiting)]
            taken = has(adapter)
            del self._waiting[adapter.version]  # after, so that Unavailable leaves it for the next turn
            if taken:
                self._live = adapter.version
                route = Route(adapter.name, kept=(route.production,) if route.production else ())
                break
        self._waiting.clear()
        return route


class Gated:
    """What the promotions say: production, the one on trial, and the one to go back to. Where production is refused here, what came before it."""

    topics: tuple[Topic[Any], ...] = (ADAPTERS, PROMOTIONS)

    def __init__(self, policy: str) -> None:
        self._adapters: dict[str, AdapterVersion] = {}
        self._refused_s: dict[str, float] = {}
        self.standing = Standing(policy)
        self.moved_at: datetime | None = None
        """When the last event was written."""

    def note(self, event: Event) -> None:
        """One more event of the log; one that was seen before changes nothing."""
        if isinstance(event, AdapterVersion) and event.policy == self.standing.policy:
            self._adapters[event.name] = event
        elif isinstance(event, Promotion) and event.promotion_id not in self.standing.seen:
            self.standing, self.moved_at = self.standing.after(event), event.at

    def choose(self, route: Route, has: Has) -> Route:
        """What to serve from now on."""
        standing, trial = self.standing, self.standing.trial
        earlier = (name for name in reversed(standing.earlier) if name not in standing.bad)
        production = next((name for name in (standing.production, *earlier) if name is None or self._serves(name, has)), None)
        candidate = trial.adapter if trial is not None and self._serves(trial.adapter, has) else None
        share = trial.canary_share if trial is not None and candidate is not None and production == standing.production else 0.0
        previous = standing.previous
        kept = (previous,) if previous is not None and self._serves(previous, has) else ()
        return Route(production, candidate, share, kept)

    def _serves(self, name: str, has: Has) -> bool:
        adapter = self._adapters.get(name)
        if adapter is None or time.monotonic() - self._refused_s.get(name, float("-inf")) < REFUSED_FOR_S:
            return False
        if has(adapter):
            return True
        self._refused_s[name] = time.monotonic()
        return False
