"""The lake's loop, for as long as the part runs."""

import structlog

from streams.core.errors import Unavailable
from streams.core.part_context import PartContext
from streams.join.feedback_join import DEFAULT_EVIDENCE
from streams.join.join_settings import EvidenceSettings
from streams.lake.lake_session import LakeSession
from streams.lake.lake_settings import LakeSettings
from streams.lake.parquet_lake import Lake

log = structlog.get_logger()


def run(settings: LakeSettings, context: PartContext, evidence: EvidenceSettings = DEFAULT_EVIDENCE) -> None:
    """Write until stopped; waiting records are written before it returns. While Kafka or the store is unavailable, wait and try again.

    ``evidence``: the join's settings, to work out labels again that lose a vote in an erasure.
    """
    lake = Lake(settings.uri or str(context.state / "lake"))
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
