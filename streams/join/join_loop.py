"""The join's loop: episodes and feedback in, labels and dead letters out, for as long as the part runs."""

import gc

import structlog

from streams.core.errors import Unavailable
from streams.core.part_context import PartContext
from streams.join.join_session import JoinSession
from streams.join.join_settings import JoinSettings

YOUNG, MIDDLE, OLD = 50_000, 20, 100
"""Objects made before Python looks for cycles among the young ones (its default: 700), and how many such looks before it looks at older ones."""
log = structlog.get_logger()


def collect_seldom() -> None:
    """The join holds many objects for long and makes hardly a cycle: looking for them took a third of its time. What is in memory now is never
    looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)


def run(settings: JoinSettings, context: PartContext) -> None:
    """Join until stopped. While Kafka is unavailable, wait and try again."""
    collect_seldom()
    while not context.stopping.is_set():
        try:
            session = JoinSession(settings, context)
            try:
                while not context.stopping.is_set():
                    session.turn()
            finally:
                session.close()
        except Unavailable as error:
            log.warning("the join waits for Kafka", error=str(error))
            context.health.mark_missing("join")
            context.stopping.wait(2.0)
