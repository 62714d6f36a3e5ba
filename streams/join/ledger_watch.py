"""Keeps the ledger beside the join: counts again and again what arrived lately, and shows as metrics what is missing and what is overdue."""

import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

import structlog

from streams.core.errors import ConfigError, Unavailable
from streams.core.events import Erased, Erasure
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import ERASED, ERASURES
from streams.erasure.erasure_follower import read_erased, read_erasures
from streams.erasure.forgotten_people import Forgotten
from streams.join.join_settings import JoinSettings
from streams.join.ledger import Ledger, read_ledger
from streams.kafka import KafkaSettings, read_to_end

FIRST_S = 60.0
"""The first count comes this soon after the start, so that an operator sees that there is one."""
AT_MOST = 0.05
"""Part of the time that counting may take: a large log is counted less often."""
REPORTS = ("join", "lake", "learner")
"""Parts that report every erasure in every ring."""
log = structlog.get_logger()


def run(settings: JoinSettings, context: PartContext) -> None:
    """Count until stopped; not at all where ``join.ledger_every_s`` is 0. While Kafka is away nothing is counted, and metrics stay as they were."""
    if not settings.ledger_every_s:
        return
    pause_s = min(FIRST_S, settings.ledger_every_s)
    while not context.stopping.wait(pause_s):
        began_s = time.monotonic()
        try:
            count(settings, context, lambda since: read_ledger(context.kafka, since, read_from=since), lambda: erasures(context.kafka))
        except (Unavailable, ConfigError) as error:
            log.warning("the ledger waits", error=str(error))
        took_s = time.monotonic() - began_s
        pause_s = max(settings.ledger_every_s, took_s / AT_MOST - took_s)


def count(settings: JoinSettings, context: PartContext, ledger: Callable[[datetime], Ledger],
          asked: Callable[[], tuple[list[Erasure], list[Erased]]]) -> None:  # fmt: skip
    """One count: ``tidemill_ledger_missing_records`` by topic, and ``tidemill_erasure_open_seconds``."""
    now = context.clock.now()
    found = ledger(now - timedelta(hours=settings.ledger_span_h))
    for row in found.rows:
        context.metrics.set("tidemill_ledger_missing_records", len(row.missing), topic=row.topic)
        if row.missing:
            log.error("records are missing: the join has read past them and they are nowhere", topic=row.topic, count=len(row.missing),
                      some=list(row.missing[:5]))  # fmt: skip
    context.metrics.set("tidemill_erasure_open_seconds", oldest_open_s(*asked(), now))


def erasures(kafka: KafkaSettings) -> tuple[list[Erasure], list[Erased]]:
    """Every erasure on the log, and every report."""
    metrics = Metrics()
    requests = read_erasures(read_to_end(kafka, ERASURES, "ledger", metrics), Forgotten())
    return [each.erasure for each in requests], read_erased(read_to_end(kafka, ERASED, "ledger", metrics))


def oldest_open_s(asked: Iterable[Erasure], reports: Iterable[Erased], now: datetime) -> float:
    """Age of the oldest erasure that one of ``REPORTS`` has not reported, in seconds; 0 when there is none."""
    done = {(each.person, each.erasure_at, each.part) for each in reports}
    open_at = [each.at for each in asked if any((each.person, each.at, part) not in done for part in REPORTS)]
    return max(0.0, (now - min(open_at)).total_seconds()) if open_at else 0.0
