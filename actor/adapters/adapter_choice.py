"""Chooses the adapters that a replica should serve, from the log. Pure, except for the callback that loads and attests an adapter."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from actor.adapters.request_routing import Route
from actor.promotion.promotion_stages import AdapterStanding
from streams.core.clock import Clock
from streams.core.events import AdapterVersion, Attestation, Event, Promotion
from streams.core.topics import ADAPTERS, ATTESTATIONS, PROMOTIONS, Topic

EnsureAttested = Callable[[AdapterVersion], bool]
"""Loads and attests an adapter unless it is attested already. False when it was refused."""
SILENT_FOR = timedelta(hours=1)
"""A replica that is silent for this long counts as gone."""


class NewestAdapter:
    """Chooses the newest adapter that can be attested. An older one is tried only when a newer one is refused; adapters in between are not loaded."""

    topics: tuple[Topic[Any], ...] = (ADAPTERS,)
    moved_at: datetime | None = None

    def __init__(self, policy: str, most_refusals: int) -> None:
        self._policy, self._most_refusals = policy, most_refusals
        self._live = 0
        self._waiting: dict[int, AdapterVersion] = {}

    def note(self, event: Event) -> None:
        """Take note of an event from the log."""
        if isinstance(event, AdapterVersion) and event.policy == self._policy and event.version > self._live:
            self._waiting[event.version] = event

    def choose(self, route: Route, ensure_attested: EnsureAttested) -> Route:
        """What to serve from now on."""
        for _ in range(min(self._most_refusals, len(self._waiting))):
            adapter = self._waiting[max(self._waiting)]
            taken = ensure_attested(adapter)
            del self._waiting[adapter.version]  # after the loading: when it raises Unavailable, the next turn tries again
            if taken:
                self._live = adapter.version
                route = Route(adapter.name, kept=(route.production,) if route.production else ())
                break
        self._waiting.clear()
        return route


class GatedAdapter:
    """Chooses by promotions: production, the candidate on trial, and the rollback target.

    All replicas switch to a new production, or none: each keeps it loaded and answers with the production before it, until the log holds an
    attestation of every replica. A replica that is silent for ``patience_s`` does not hold the others up; one that refuses the adapter does. If this
    replica refuses production, it answers with the production before it too.
    """

    topics: tuple[Topic[Any], ...] = (ADAPTERS, PROMOTIONS, ATTESTATIONS)

    def __init__(self, policy: str, clock: Clock, patience_s: float) -> None:
        self._clock, self._patience = clock, timedelta(seconds=patience_s)
        self._adapters: dict[str, AdapterVersion] = {}
        self._attestations: dict[tuple[str, str], Attestation] = {}
        self.standing = AdapterStanding(policy)
        self.moved_at: datetime | None = None
        """When the last event was written."""

    def note(self, event: Event) -> None:
        """Take note of an event from the log. Idempotent."""
        if isinstance(event, AdapterVersion) and event.policy == self.standing.policy:
            self._adapters[event.name] = event
        elif isinstance(event, Promotion) and event.promotion_id not in self.standing.seen:
            self.standing, self.moved_at = self.standing.after(event), event.at
        elif isinstance(event, Attestation) and event.adapter.rpartition("@")[0] == self.standing.policy:
            self._attestations[event.replica, event.adapter] = event

    def choose(self, route: Route, ensure_attested: EnsureAttested) -> Route:
        """What to serve from now on."""
        standing, trial = self.standing, self.standing.trial
        waits = (
            standing.production is not None
            and self._ensure_attested(standing.production, ensure_attested)
            and self._must_wait(standing.production, route)
        )
        first = () if waits else (standing.production,)
        earlier = (name for name in reversed(standing.earlier) if name not in standing.bad)
        production = next((name for name in (*first, *earlier) if name is None or self._ensure_attested(name, ensure_attested)), None)
        candidate = trial.adapter if trial is not None and self._ensure_attested(trial.adapter, ensure_attested) else None
        as_told = production == standing.production
        canary_share = trial.canary_share if trial is not None and candidate is not None and as_told else 0.0
        previous = standing.previous
        has_previous = previous is None or self._ensure_attested(previous, ensure_attested)
        kept = (standing.production if waits else None, previous if has_previous else None)
        route = Route(production, candidate, canary_share, kept=tuple(name for name in kept if name is not None))
        if as_told and has_previous and standing.share < 1:
            route = replace(route, production_share=standing.share, before=previous)
        return route

    def _must_wait(self, production: str, route: Route) -> bool:
        """True while production is new, this replica does not serve it yet, and some replica has not attested it."""
        since, now = self.standing.since, self._clock.now()
        if since is None or production == route.production:
            return False
        of_it = [each for (_, adapter), each in self._attestations.items() if adapter == production]
        if any(not each.passed and each.at >= since for each in of_it):
            return True
        heard = {each.replica for each in self._attestations.values() if each.at >= now - SILENT_FOR}
        return not heard <= {each.replica for each in of_it if each.passed} and now - since < self._patience

    def _ensure_attested(self, name: str, ensure_attested: EnsureAttested) -> bool:
        adapter = self._adapters.get(name)
        return adapter is not None and ensure_attested(adapter)
