"""One connection of the lake to Kafka, turn by turn: every topic in, Parquet files out.

It reads without a consumer group and stores no offsets: the names of the lake's files tell where to continue. A failed write is tried again; the
waiting records stay in memory, and nothing more is read meanwhile.
"""

from collections.abc import Mapping
from datetime import timedelta

import structlog

from streams.core.errors import ConfigError, Unavailable
from streams.core.part_context import PartContext
from streams.core.topics import BY_NAME, DEAD_LETTERS, EPISODES, ERASED, ERASURES, FEEDBACK, TOPICS
from streams.erasure.erasure_follower import ErasureFollower, read_erased, read_erasures
from streams.join.join_settings import EvidenceSettings
from streams.kafka import Consumer, Producer, read_to_end
from streams.lake.compaction import Compactor
from streams.lake.lake_erasure import LakeErasure
from streams.lake.lake_settings import LakeSettings
from streams.lake.parquet_lake import Lake
from streams.lake.write_buffer import WriteBuffer

LAG_EVERY_S = 5.0
PRUNE_EVERY_S = 3600.0
TURN_S = 300.0
"""Without a heartbeat for this long the loop hangs, or its store cannot be written."""
log = structlog.get_logger()


class LakeSession:
    """One connection to Kafka, until its first failure. The next session continues after the last file."""

    def __init__(self, settings: LakeSettings, context: PartContext, lake: Lake, evidence: EvidenceSettings) -> None:
        """Connect, after carrying out what was asked meanwhile. Raises Unavailable; ConfigError where the lake belongs to another log."""
        self._settings, self._context, self._lake = settings, context, lake
        self._erasure = LakeErasure(lake, context.artifacts, evidence, lambda: context.health.heartbeat("lake", TURN_S), settings.reports_as)
        carry_out_erasures(self._erasure, context, lake.positions(ERASURES))
        self._compactor = Compactor(lake, settings, context)
        self._waiting = WriteBuffer(settings.flush_rows, settings.flush_s, settings.flush_bytes)
        self._lag_at_s = self._prune_at_s = 0.0
        self._consumer = Consumer(context.kafka, TOPICS, "lake", context.metrics)
        try:
            self._start()
        except BaseException:
            self._consumer.close()
            raise

    def turn(self) -> None:
        """Read what there is, write what is due, erase who asked, and merge a little. Raises Unavailable."""
        settings, context, now_s = self._settings, self._context, self._context.clock.monotonic_s()
        context.health.heartbeat("lake", TURN_S)
        records = self._consumer.poll(min(0.5, settings.flush_s), max_records=5000)
        self._waiting.add(records, now_s)
        asked = read_erasures((record for record in records if record.topic == ERASURES.name), self._erasure.forgotten)
        for topic in self._waiting.topics() if asked else self._waiting.due(now_s):
            self._write(topic)
        if asked:
            self._compactor.abandon()  # a merge in hand holds rows as they were
            carry_out_erasures(self._erasure, context)
        if now_s >= self._lag_at_s:
            self._lag_at_s = now_s + LAG_EVERY_S
            self._consumer.measure_lag()
        if settings.keep_days is not None and now_s >= self._prune_at_s:
            self._prune_at_s = now_s + PRUNE_EVERY_S
            self._compactor.abandon()
            self._prune(settings.keep_days)
        self._compactor.advance()

    def finish(self) -> None:
        """Write all that waits."""
        for topic in self._waiting.topics():
            self._write(topic)

    def close(self) -> None:
        """Close the connection. What was not written is read again by the next session."""
        self._consumer.close()

    def _start(self) -> None:
        """Go on after the last files. A lake that is ahead of the log belongs to another log and must not be mixed with this one."""
        positions = {}
        for topic in TOPICS:
            self._lake.tidy(topic)
            for partition, offset in self._lake.positions(topic).items():
                positions[topic.name, partition] = offset
        known = self._consumer.bounds(self._consumer.positions())
        for key, offset in positions.items():
            first, end = known.get(key, (0, 0))
            if offset > end:
                raise ConfigError(
                    f"the lake ends at offset {offset} of {key[0]}/{key[1]}, the log at {end}: set lake.uri to a new place for this log"
                )
            if offset < first:
                lost = first - offset
                log.error("the lake was down for longer than the log is kept: records are lost", topic=key[0], partition=key[1], lost=lost)
        self._consumer.seek(positions)

    def _write(self, topic: str) -> None:
        """Write all waiting records of a topic, trying again until it works or the part is stopped."""
        context = self._context
        for key, records in self._waiting.of(topic).items():
            while True:
                try:
                    self._lake.write(BY_NAME[topic], self._erasure.without_erased(records))
                    break
                except Unavailable as error:
                    context.metrics.add("tidemill_lake_failures_total")
                    context.health.heartbeat("lake", TURN_S)
                    context.health.mark_missing("lake")
                    log.error("the lake cannot write and will try again", error=str(error), waiting_rows=self._waiting.rows,
                              retry_s=self._settings.retry_s)  # fmt: skip
                    if context.stopping.wait(self._settings.retry_s):
                        return  # the log still has these records; the next start begins before them
            self._waiting.drop(key)
            context.metrics.add("tidemill_lake_rows_total", len(records), topic=topic)

    def _prune(self, keep_days: int) -> None:
        before = self._context.clock.now().date() - timedelta(days=keep_days)
        for topic in (EPISODES, FEEDBACK, DEAD_LETTERS):
            if removed := self._lake.prune(topic, before):
                log.info("lake pruned", topic=topic.name, files=removed, before=str(before))


def carry_out_erasures(erasure: LakeErasure, context: PartContext, known: Mapping[int, int] | None = None) -> None:
    """Carry out every erasure that this lake has not yet reported as done, and report them. Raises Unavailable.

    ``known``: where this lake's own copy of the erasures ends. A restored back-up ends before erasures that it reported once; it carries them out
    again, and reports again if there was something to remove.
    """
    erasures = ErasureFollower(context, "lake")
    erasures.close()
    reports = read_erased(read_to_end(context.kafka, ERASED, "lake", context.metrics))
    done = {(each.person, each.erasure_at) for each in reports if (each.part, each.where) == ("lake", erasure.where)}
    new_from = max(known.values(), default=0) if known is not None else erasures.end
    for each in erasures.asked:
        erasure.forgotten.add(each.erasure, each.arrived_ms)
    due = [each for each in erasures.asked if each.offset >= new_from or (each.erasure.person, each.erasure.at) not in done]
    if not due:
        return
    producer = Producer(context.kafka, context.metrics, "tidemill-lake")
    try:
        for report in erasure.erase_all(due, context.clock.now()):
            if (report.person, report.erasure_at) not in done or any(report.removed.values()):
                producer.publish(ERASED, report)
    finally:
        producer.close()
