"""The lake's loop, for as long as the part runs."""

import structlog

from streams.core.errors import InvalidEvent, Unavailable
from streams.core.part_context import PartContext
from streams.core.poison_records import RecordInHand
from streams.join.feedback_join import DEFAULT_EVIDENCE
from streams.join.join_settings import EvidenceSettings
from streams.kafka import Producer, Record
from streams.kafka.dead_letters import DeadLetters
from streams.lake.lake_session import LakeSession
from streams.lake.lake_settings import LakeSettings
from streams.lake.parquet_lake import Lake
from streams.lake.rows_in_hand import RowsInHand

log = structlog.get_logger()


def rows_in_hand(context: PartContext) -> RowsInHand:
    """The writer's, with its file in the state folder."""

    def set_aside(record: Record, error: InvalidEvent) -> None:
        producer = Producer(context.kafka, context.metrics, "tidemill-lake")
        try:
            DeadLetters(producer, context.clock, context.metrics, "lake").set_aside(record, error)
            producer.flush()
        finally:
            producer.close()

    return RowsInHand(RecordInHand(context.state / "lake.in-hand"), set_aside)


def run(settings: LakeSettings, context: PartContext, evidence: EvidenceSettings = DEFAULT_EVIDENCE) -> None:
    """Write until stopped; waiting records are written before it returns. While Kafka or the store is unavailable, wait and try again.

    ``evidence``: the join's settings, to work out labels again that lose a vote in an erasure.
    """
    lake = Lake(settings.uri or str(context.state / "lake"), rows=rows_in_hand(context))
    while not context.stopping.is_set():
        try:
            session = LakeSession(settings, context, lake, evidence)
            try:
                while not context.stopping.is_set():
                    session.turn()
                session.finish()
            finally:
                session.close()
        except Unavailable as error:
            log.warning("the lake waits", error=str(error))
            context.health.mark_missing("lake")
            context.stopping.wait(settings.retry_s)
