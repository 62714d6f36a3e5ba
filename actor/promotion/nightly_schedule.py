"""The nightly schedule: which adapter becomes the next candidate, and when. Pure. Trials are on the log, so a night that a kill interrupted goes on,
and a missed night is made up for."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from croniter import croniter

from actor.promotion.promotion_stages import AdapterStanding
from streams.core.events import AdapterVersion


def last_due(cron: str, time_zone: str, now: datetime) -> datetime:
    """The newest time at or before now at which the candidates are collected, in UTC."""
    just_after = (now + timedelta(seconds=1)).astimezone(ZoneInfo(time_zone))
    due: datetime = croniter(cron, just_after).get_prev(datetime)
    return due.astimezone(UTC)


def next_candidate(standing: AdapterStanding, adapters: Iterable[AdapterVersion], due: datetime, tries: int) -> AdapterVersion | None:
    """The newest adapter published before ``due`` that is newer than production and all that was tried on earlier nights; after a failure the
    next older one, up to ``tries`` a night."""
    tonight = [name for name, at in standing.tried.items() if at >= due]
    if standing.trial is not None or len(tonight) >= tries:
        return None
    before = [name for name, at in standing.tried.items() if at < due]
    passed = max([standing.version(name) or 0 for name in (standing.production, *before)])
    fresh = [
        adapter for adapter in adapters
        if adapter.policy == standing.policy and adapter.version > passed and adapter.created_at <= due
        and adapter.name not in standing.tried and adapter.name not in standing.bad
    ]  # fmt: skip
    return max(fresh, key=lambda adapter: adapter.version, default=None)
