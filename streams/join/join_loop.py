"""The join's loop: episodes and feedback in, labels and dead letters out.

For each batch, in this order: fold it, wait until its labels are acknowledged, commit its offsets to Kafka, then commit state and offsets to disk
in one transaction. So the state on disk is never ahead of the offsets in Kafka, and a member that takes over with older state first folds up to
those offsets without publishing: labels and offsets never go back. A kill at any point can only repeat labels.
"""

import time

import structlog

from streams.core.errors import Unavailable
from streams.core.part_context import PartContext
from streams.core.topics import EPISODES, FEEDBACK, LABELS
from streams.erasure.erasure_follower import ErasureFollower
from streams.join.join_erasure import labels_naming
from streams.join.join_settings import JoinSettings
from streams.join.partition_processor import PartitionProcessor
from streams.kafka import Consumer, Producer
from streams.kafka.dead_letters import DeadLetters

GROUP = "tidemill-join"
REFUSALS = 5
"""Turns in a row whose offset commit may fail before the join reconnects. Their records wait in memory meanwhile."""
TURN_S = 300.0
"""Without a heartbeat for this long the loop counts as hanging. Longer than Kafka's own time limits."""
log = structlog.get_logger()


def run(settings: JoinSettings, context: PartContext) -> None:
    """Join until stopped. While Kafka is unavailable, wait and try again."""
    while not context.stopping.is_set():
        try:
            _session(settings, context)
        except Unavailable as error:
            log.warning("the join waits for Kafka", error=str(error))
            context.health.mark_missing("join")
            context.stopping.wait(2.0)


def _session(settings: JoinSettings, context: PartContext) -> None:
    """Connect and join until the first failure. The next session continues at the last commit."""
    erasures = ErasureFollower(context, "join")  # first: joining the group takes partitions away from others
    producer = Producer(context.kafka, context.metrics, "tidemill-join")
    letters = DeadLetters(producer, context.clock, context.metrics, "join")
    consumer = Consumer(context.kafka, [EPISODES, FEEDBACK], "join", context.metrics, group=GROUP)
    parts: dict[int, PartitionProcessor] = {}
    told: dict[tuple[str, int], int] = {}
    refused = 0
    expire_at = 0.0
    try:
        while not context.stopping.is_set():
            context.health.heartbeat("join", TURN_S)
            records = consumer.poll(0.5, settings.batch_records)
            if (owned := consumer.take_assignment()) is not None:
                close(parts)
                parts = {number: PartitionProcessor(number, settings, context, letters, erasures) for number in {partition for _, partition in owned}}
                consumer.seek({key: offset for part in parts.values() for key, offset in part.start(consumer).items()})
                told, refused = {}, 0
                catching_up = sorted(number for number, part in parts.items() if part.catching_up)
                log.info("the join owns partitions", partitions=sorted(parts), catches_up=catching_up)
                continue
            for record in records:
                parts[record.partition].take(record)
            for part in parts.values():
                if part.catching_up:
                    part.catch_up(consumer)
            if due := time.monotonic() >= expire_at:
                expire_at = time.monotonic() + settings.expire_every_s
                for part in parts.values():
                    part.expire(consumer)
                context.metrics.set("tidemill_feedback_pending", sum(part.store.waiting() for part in parts.values()))
                consumer.measure_lag()
            changed = [part for part in parts.values() if part.changed]
            places = {where: offset for part in parts.values() for where, offset in part.places.items()}
            if changed or places != told:
                for part in changed:
                    part.publish(producer)
                producer.flush()
                for part in changed:
                    part.settle(producer)
                if not consumer.commit(places):  # the next turn tries again, or drops this work because the partitions are lost
                    if (refused := refused + 1) >= REFUSALS:
                        raise Unavailable(f"Kafka has refused the offsets of {GROUP} {refused} times in a row")
                    continue
                told, refused = places, 0
                for part in changed:
                    part.commit()
            current = [part for part in parts.values() if not part.catching_up]
            if due:
                ends = consumer.bounds((LABELS.name, part.number) for part in current)
                if consumer.commit(places):  # no other member has taken over. One that does so later writes after these ends, which we then check
                    for (_, number), (_, end) in ends.items():
                        parts[number].repair_labels(end, producer)
            erasures.poll()
            if forgetting := [part for part in current if part.erasures_due]:
                labels = labels_naming(erasures.forgotten, context)
                for part in forgetting:
                    part.erase_people(labels.get(part.number, {}).values(), producer)
    finally:
        close(parts)
        erasures.close()
        consumer.close()
        producer.close(timeout_s=2.0)  # everything committed is acknowledged already; the rest is sent again


def close(parts: dict[int, PartitionProcessor]) -> None:
    """Close the state files. What was not committed will be folded again."""
    for part in parts.values():
        part.store.close()
    parts.clear()
