"""The join's loop: episodes and feedback in, labels and dead letters out, for as long as the part runs."""

import structlog

from streams.core.errors import Unavailable
from streams.core.part_context import PartContext
from streams.join.join_session import JoinSession
from streams.join.join_settings import JoinSettings

log = structlog.get_logger()


def run(settings: JoinSettings, context: PartContext) -> None:
    """Join until stopped. While Kafka is unavailable, wait and try again."""
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
