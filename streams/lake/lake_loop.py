"""The lake's loop: every topic in, Parquet files out.

It reads without a consumer group and stores no offsets: the names of the lake's files tell where to continue. A failed write is tried again; the
waiting records stay in memory, and nothing more is read meanwhile.
"""

import time
from datetime import timedelta

import structlog

from streams.core.errors import ConfigError, Unavailable
from streams.core.part_context import PartContext
from streams.core.topics import BY_NAME, DEAD_LETTERS, EPISODES, ERASED, ERASURES, FEEDBACK, TOPICS
from streams.erasure.erasure_follower import ErasureFollower, read_erased, read_erasures
from streams.join.feedback_join import DEFAULT_EVIDENCE
from streams.join.join_settings import EvidenceSettings
from streams.kafka import Consumer, Producer, read_to_end
from streams.lake.lake_erasure import LakeErasure
from streams.lake.lake_settings import LakeSettings
from streams.lake.parquet_lake import Lake
from streams.lake.write_buffer import Key, WriteBuffer

log = structlog.get_logger()
PRUNE_EVERY_S = 3600.0
TURN_S = 300.0
"""Without a heartbeat for this long the loop hangs, or its store cannot be written."""


def run(settings: LakeSettings, context: PartContext, evidence: EvidenceSettings = DEFAULT_EVIDENCE) -> None:
    """Write until stopped; waiting records are written before it returns. While Kafka or the store is unavailable, wait and try again.

    ``evidence``: the join's settings, to work out labels again that lose a vote in an erasure.
    """
    lake = Lake(settings.uri or str(context.state / "lake"))
    while not context.stopping.is_set():
        try:
            erasure = LakeErasure(lake, context.artifacts, evidence, lambda: context.health.heartbeat("lake", TURN_S), settings.reports_as)
            _session(settings, context, lake, erasure)
        except Unavailable as error:
            log.warning("the lake waits", error=str(error))
            context.health.mark_missing("lake")
            context.stopping.wait(settings.retry_s)


def _session(settings: LakeSettings, context: PartContext, lake: Lake, erasure: LakeErasure) -> None:
    """Connect and write until Kafka's first failure. The next session continues after the last file."""
    _catch_up(erasure, context)
    consumer = Consumer(context.kafka, TOPICS, "lake", context.metrics)
    waiting = WriteBuffer(settings.flush_rows, settings.flush_s, settings.flush_bytes)
    try:
        consumer.seek(_start_positions(consumer, lake))
        lag_at = prune_at = 0.0
        while not context.stopping.is_set():
            context.health.heartbeat("lake", TURN_S)
            records = consumer.poll(min(0.5, settings.flush_s), max_records=5000)
            waiting.add(records, time.monotonic())
            asked = read_erasures((record for record in records if record.topic == ERASURES.name), erasure.forgotten)
            for topic in waiting.topics() if asked else waiting.due(time.monotonic()):
                _flush(topic, waiting, settings, context, lake, erasure)
            if asked:
                _catch_up(erasure, context)
            if time.monotonic() >= lag_at:
                lag_at = time.monotonic() + 5
                consumer.measure_lag()
            if settings.keep_days is not None and time.monotonic() >= prune_at:
                prune_at = time.monotonic() + PRUNE_EVERY_S
                _prune(settings.keep_days, context, lake)
        for topic in waiting.topics():
            _flush(topic, waiting, settings, context, lake, erasure)
    finally:
        consumer.close()


def _prune(keep_days: int, context: PartContext, lake: Lake) -> None:
    before = context.clock.now().date() - timedelta(days=keep_days)
    for topic in (EPISODES, FEEDBACK, DEAD_LETTERS):
        if removed := lake.prune(topic, before):
            log.info("lake pruned", topic=topic.name, files=removed, before=str(before))


def _start_positions(consumer: Consumer, lake: Lake) -> dict[Key, int]:
    """The offsets after the last files. A lake that is ahead of the log belongs to another log and must not be mixed with this one."""
    positions = {}
    for topic in TOPICS:
        lake.delete_unfinished(topic)
        for partition, offset in lake.positions(topic).items():
            positions[topic.name, partition] = offset
    known = consumer.bounds(consumer.positions())
    for key, offset in positions.items():
        first, end = known.get(key, (0, 0))
        if offset > end:
            raise ConfigError(f"the lake ends at offset {offset} of {key[0]}/{key[1]}, the log at {end}: set lake.uri to a new place for this log")
        if offset < first:
            lost = first - offset
            log.error("the lake was down for longer than the log is kept: records are lost", topic=key[0], partition=key[1], lost=lost)
    return positions


def _catch_up(erasure: LakeErasure, context: PartContext) -> None:
    """Carry out every erasure that the lake has not yet reported as done."""
    erasures = ErasureFollower(context, "lake")
    erasures.close()
    reports = read_erased(read_to_end(context.kafka, ERASED, "lake", context.metrics))
    done = {(each.person, each.erasure_at) for each in reports if (each.part, each.where) == ("lake", erasure.where)}
    for each in erasures.asked:
        erasure.forgotten.add(each.erasure, each.arrived_ms)
    if not (due := [each for each in erasures.asked if (each.erasure.person, each.erasure.at) not in done]):
        return
    producer = Producer(context.kafka, context.metrics, "tidemill-lake")
    try:
        for report in erasure.erase_all(due, context.clock.now()):
            producer.publish(ERASED, report)
    finally:
        producer.close()


def _flush(topic: str, waiting: WriteBuffer, settings: LakeSettings, context: PartContext, lake: Lake, erasure: LakeErasure) -> None:
    """Write all waiting records of a topic, trying again until it works or the part is stopped."""
    for key, records in waiting.of(topic).items():
        while True:
            try:
                lake.write(BY_NAME[topic], erasure.without_erased(records))
                break
            except Unavailable as error:
                context.metrics.add("tidemill_lake_failures_total")
                context.health.heartbeat("lake", TURN_S)
                context.health.mark_missing("lake")
                log.error("the lake cannot write and will try again", error=str(error), waiting_rows=waiting.rows, retry_s=settings.retry_s)
                if context.stopping.wait(settings.retry_s):
                    return  # the log still has these records; the next start begins before them
        waiting.drop(key)
        context.metrics.add("tidemill_lake_rows_total", len(records), topic=topic)
