"""A Kafka in memory, deterministic: partitions with retention and compaction by a clock of its own, and what reaches them late.

It follows what Kafka documents. A segment closes when its first record is ``segment.ms`` old; a closed segment is deleted once its newest record is
older than ``retention.ms``, and compaction keeps the newest record of each key in closed segments, tombstones for ``delete.retention.ms`` longer.
Offsets never move. The clients that stand on it are in ``simulated_clients.py``; groups are in ``simulated_groups.py``.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from streams.core.clock import Clock, FixedClock, SystemClock
from streams.core.topics import DAY_MS, TOPICS, Topic
from streams.core.traces import Headers
from streams.kafka import KafkaSettings, Record, wanted_topics
from tests.support.simulated_groups import SimulatedGroup

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DELETE_RETENTION_MS = DAY_MS
WEEK_MS = 7 * DAY_MS
"""Kafka's defaults of ``delete.retention.ms`` and ``segment.ms``."""
Place = tuple[str, int]


class Killed(BaseException):
    """The process died here: nothing that it holds is tidied up. No ``except Exception`` may hide it."""


class SimulatedClock(FixedClock):
    """Time that passes when told to; ``skewed`` is another machine's clock, which is wrong by a constant."""

    def skewed(self, by: timedelta) -> "SkewedClock":
        return SkewedClock(self, by)


@dataclass(frozen=True)
class SkewedClock:
    """A clock that is wrong by a constant. Satisfies Clock."""

    right: SimulatedClock
    by: timedelta

    def now(self) -> datetime:
        return self.right.now() + self.by

    def monotonic_s(self) -> float:
        return self.right.monotonic_s()


@dataclass
class SimulatedPartition:
    """Records in offset order, with gaps where compaction took some; the first offset that exists, and the next one to be written."""

    records: list[Record] = field(default_factory=list)
    start: int = 0
    end: int = 0
    cleaned: dict[int, int] = field(default_factory=dict)
    """By a tombstone's offset: when compaction first saw it (ms)."""

    def from_offset(self, offset: int, end: int | None = None) -> list[Record]:
        """Records from this offset to ``end`` (not included)."""
        return [record for record in self.records if record.offset >= offset and (end is None or record.offset < end)]


@dataclass
class SimulatedLog:
    """Topics in memory. ``interrupt(member, operation)`` runs before everything that a client asks for; a member is named by its host.

    With a seed (``chance``) deliveries are as uneven as a network makes them: a fetch brings some partitions and a part of what they hold, and what a
    producer has not flushed may wait.
    """

    clock: Clock = field(default_factory=SystemClock)
    settings: KafkaSettings = field(default_factory=lambda: KafkaSettings(bootstrap_servers="simulated:1"))
    chance: random.Random | None = None
    cooperative: bool = False
    retention_ms: dict[str, int] = field(default_factory=dict)
    """By topic name; others have that of their table."""
    topic_bytes: dict[str, int] = field(default_factory=dict)
    """What a topic takes, where that is less than ``kafka.max_message_bytes``."""
    interrupt: Callable[[str, str], None] = lambda _member, _operation: None
    partitions: dict[Place, SimulatedPartition] = field(default_factory=dict)
    groups: dict[str, SimulatedGroup] = field(default_factory=dict)
    producers: list[Any] = field(default_factory=list)
    """Every producer that was made: what one has in hand when its process dies may still arrive, and late."""

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.appended = threading.Condition(self.lock)
        for topic in TOPICS:
            for number in range(self.count(topic.name)):
                self.partitions[topic.name, number] = SimulatedPartition()

    @property
    def now_ms(self) -> int:
        return (self.clock.now() - EPOCH) // timedelta(milliseconds=1)

    def configs(self, topic: str) -> dict[str, str]:
        """The topic's configuration as the cluster has it."""
        configs = dict(wanted_topics(self.settings)[topic]["configs"])
        if topic in self.retention_ms:
            configs["retention.ms"] = str(self.retention_ms[topic])
        if topic in self.topic_bytes:
            configs["max.message.bytes"] = str(self.topic_bytes[topic])
        return configs

    def count(self, topic: str) -> int:
        """Number of the topic's partitions."""
        return int(wanted_topics(self.settings)[topic]["num_partitions"])

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Record:
        """Write a record at the log's own time."""
        with self.lock:
            held = self.partitions[topic, partition]
            record = Record(topic, partition, held.end, self.now_ms, key, value, headers)
            held.records.append(record)
            held.end += 1
            self.appended.notify_all()
            return record

    def group(self, name: str) -> SimulatedGroup:
        """A consumer group, made at its first use."""
        return self.groups.setdefault(name, SimulatedGroup(self))

    def records(self, topic: Topic[Any]) -> list[Record]:
        """What the topic holds now, partition by partition."""
        with self.lock:
            return [record for (name, _), held in sorted(self.partitions.items()) if name == topic.name for record in held.records]

    def everything(self) -> list[Record]:
        """What all topics hold."""
        return [record for topic in TOPICS for record in self.records(topic)]

    def events(self, topic: Topic[Any]) -> list[Any]:
        """The same, decoded."""
        return [topic.decode(record.value) for record in self.records(topic)]

    def committed(self, group: str) -> dict[Place, int]:
        """The group's committed offsets."""
        with self.lock:
            return dict(self.group(group).committed)

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete what is older, as retention and ``kafka-delete-records`` do."""
        with self.lock:
            held = self.partitions[topic, partition]
            held.start = max(held.start, min(offset, held.end))
            held.records = held.from_offset(held.start)

    def clean(self) -> None:
        """Let retention and compaction have their turn, once."""
        with self.lock:
            for (topic, number), held in self.partitions.items():
                configs = self.configs(topic)
                if configs["cleanup.policy"] == "compact":
                    self._compact(held, int(configs.get("max.compaction.lag.ms", WEEK_MS)))
                elif (retention_ms := int(configs["retention.ms"])) >= 0:
                    self._expire(topic, number, retention_ms, int(configs.get("segment.ms", WEEK_MS)))

    def _expire(self, topic: str, number: int, retention_ms: int, segment_ms: int) -> None:
        held = self.partitions[topic, number]
        for segment in segments(held.records, segment_ms):
            if segment[-1].timestamp_ms >= self.now_ms - retention_ms:
                return
            self.delete_before(topic, number, segment[-1].offset + 1)

    def _compact(self, held: SimulatedPartition, segment_ms: int) -> None:
        closed = [segment for segment in segments(held.records, segment_ms) if self.now_ms - segment[0].timestamp_ms >= segment_ms]
        if not closed:
            return
        dirty_from = closed[-1][-1].offset + 1
        newest: dict[bytes | None, int] = {record.key: record.offset for record in held.records if record.offset < dirty_from}
        kept = []
        for record in held.records:
            if record.offset >= dirty_from or record.offset == held.end - 1:
                kept.append(record)
            elif newest[record.key] == record.offset:
                if record.value is None and self.now_ms - held.cleaned.setdefault(record.offset, self.now_ms) > DELETE_RETENTION_MS:
                    continue
                kept.append(record)
        held.records = kept


def segments(records: list[Record], segment_ms: int) -> list[list[Record]]:
    """The records by segment: one closes when a record comes that is ``segment_ms`` younger than its first."""
    found: list[list[Record]] = []
    for record in records:
        if not found or record.timestamp_ms - found[-1][0].timestamp_ms >= segment_ms:
            found.append([])
        found[-1].append(record)
    return found
