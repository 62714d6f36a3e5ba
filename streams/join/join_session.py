"""One connection of the join to Kafka, turn by turn.

For each batch, in this order: fold it, wait until its labels are acknowledged, commit its offsets to Kafka, then commit state and offsets to disk
in one transaction. So the state on disk is never ahead of the offsets in Kafka, and a member that takes over with older state first folds up to
those offsets without publishing: labels and offsets never go back. A kill at any point can only repeat labels.
"""

import structlog

from streams.core.errors import Unavailable
from streams.core.part_context import PartContext
from streams.core.topics import EPISODES, FEEDBACK, LABELS
from streams.erasure.erasure_follower import ErasureFollower
from streams.join.join_settings import JoinSettings
from streams.join.log_retention import remembered
from streams.join.partition_processor import PartitionProcessor, take_assigned
from streams.join.people_eraser import PeopleEraser
from streams.kafka import Consumer, Producer, retentions
from streams.kafka.dead_letters import DeadLetters

GROUP = "tidemill-join"
REFUSALS = 5
"""Turns in a row whose offset commit may fail before the join reconnects. Their records wait in memory meanwhile."""
TURN_S = 300.0
"""Without a heartbeat for this long the loop counts as hanging: longer than Kafka's own limits."""
log = structlog.get_logger()


class JoinSession:
    """One connection to Kafka, until its first failure. The next session continues at the last commit."""

    def __init__(self, settings: JoinSettings, context: PartContext) -> None:
        """Connect. Raises Unavailable."""
        self._settings, self._context = settings, context
        self._erasures = ErasureFollower(context, "join")  # first: joining the group takes partitions away from others
        self._producer = Producer(context.kafka, context.metrics, "tidemill-join")
        self._letters = DeadLetters(self._producer, context.clock, context.metrics, "join")
        self._consumer = Consumer(context.kafka, [EPISODES, FEEDBACK], "join", context.metrics, group=GROUP)
        self._remembered = remembered(settings, retentions(context.kafka))
        self.parts: dict[int, PartitionProcessor] = {}
        self._eraser = PeopleEraser(self._erasures, context)
        self._told: dict[tuple[str, int], int] = {}
        self._refused, self._expire_at_s = 0, 0.0

    def turn(self) -> None:
        """Fold a batch, and make it durable. Raises Unavailable."""
        settings, context, now_s = self._settings, self._context, self._context.clock.monotonic_s()
        context.health.heartbeat("join", TURN_S)
        records = self._consumer.poll(0.0 if self._eraser.is_scanning else 0.5, settings.batch_records)
        if (assigned := self._consumer.take_assignment()) is not None:
            take_assigned(assigned, self.parts, self._consumer, self._processor)
            self._eraser.drop_scan()
            self._told, self._refused = {}, 0
            return
        for record in records:
            self.parts[record.partition].take(record)
        for part in self.parts.values():
            if part.catching_up:
                part.catch_up(self._consumer)
        if due := now_s >= self._expire_at_s:
            self._expire_at_s = now_s + settings.expire_every_s
            behind = self._consumer.behind(self._places())
            for part in self.parts.values():
                part.expire(behind)
            context.metrics.set("tidemill_feedback_pending", sum(part.store.waiting() for part in self.parts.values()))
            self._consumer.measure_lag()
        if not self._commit():
            return
        current = [part for part in self.parts.values() if not part.catching_up]
        if due:
            ends = self._consumer.bounds((LABELS.name, part.number) for part in current)
            if self._consumer.commit(self._places()):  # no other member has taken over: one that does so later writes after these ends
                for (_, number), (_, end) in ends.items():
                    self.parts[number].repair_labels(end, self._producer)
        self._eraser.turn(current, self._producer)

    def close(self) -> None:
        """Leave the group. What was not committed will be folded again."""
        for part in self.parts.values():
            part.close()
        self._eraser.drop_scan()
        self._erasures.close()
        self._consumer.close()
        self._producer.close(timeout_s=2.0)  # everything committed is acknowledged already; the rest is sent again

    def _processor(self, number: int) -> PartitionProcessor:
        return PartitionProcessor(number, self._settings, self._context, self._letters, self._erasures, self._remembered)

    def _commit(self) -> bool:
        """Publish labels, then commit the offsets to Kafka, then state and offsets to disk. False when Kafka has refused the offsets."""
        changed, places = [part for part in self.parts.values() if part.changed], self._places()
        if not changed and places == self._told:
            return True
        for part in changed:
            part.publish(self._producer)
        self._producer.flush()
        for part in changed:
            part.settle(self._producer)
        if not self._consumer.commit(places):  # the next turn tries again, or drops this work because the partitions are lost
            self._refused += 1
            if self._refused >= REFUSALS:
                raise Unavailable(f"Kafka has refused the offsets of {GROUP} {self._refused} times in a row")
            return False
        self._told, self._refused = places, 0
        for part in self.parts.values():
            part.group_offsets = part.places
        for part in changed:
            part.commit()
        return True

    def _places(self) -> dict[tuple[str, int], int]:
        return {where: offset for part in self.parts.values() for where, offset in part.places.items()}
