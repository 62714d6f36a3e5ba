"""The Kafka consumer: raw records, with offsets committed explicitly after the work is done."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import kafka
from kafka.errors import KafkaError

from streams.core.errors import ConfigError
from streams.core.metrics import Metrics
from streams.core.topics import Topic
from streams.kafka.client_errors import translated_errors
from streams.kafka.finished_joins import keep_finished_joins
from streams.kafka.group_assignor import SideBySideAssignor
from streams.kafka.header_names import read_any_header_names
from streams.kafka.kafka_settings import KafkaSettings
from streams.kafka.login import connecting
from streams.kafka.record_reading import Record, read_compiled


@dataclass(frozen=True, slots=True)
class Assigned:
    """What a consumer owns after a rebalance, by (topic, partition)."""

    partitions: frozenset[tuple[str, int]]
    kept: frozenset[tuple[str, int]]
    """Those of them that were never given up since the last one was told: nobody else can have worked on them."""


class Consumer:
    """Reads raw records and commits explicitly. With a group, members share the partitions; without one, it reads all of them.

    It starts at ``earliest`` unless the group has committed an offset. Not thread-safe.
    """

    def __init__(self, settings: KafkaSettings, topics: Sequence[Topic[Any]], part: str, metrics: Metrics, group: str | None = None,
                 start: Literal["earliest", "latest"] = "earliest") -> None:  # fmt: skip
        self._metrics, self._part, self._grouped, self._settings = metrics, part, group is not None, settings
        self._commit_timeout_ms = int(settings.session_timeout_s * 1000)  # without a timeout it tries for ever
        self._ask_timeout_ms = int(settings.request_timeout_s * 1000)
        read_any_header_names()
        self._rebalance = _Rebalance()
        with connecting(self._settings):
            self._consumer = kafka.KafkaConsumer(
                **settings.client_options(),
                client_id=f"tidemill-{part}",
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset=start,
                session_timeout_ms=int(settings.session_timeout_s * 1000),
                heartbeat_interval_ms=int(settings.session_timeout_s * 1000 / 4),
                max_partition_fetch_bytes=settings.max_message_bytes * 2,
                partition_assignment_strategy=(self._rebalance.assignor,),
                allow_auto_create_topics=False,
            )
            read_compiled(self._consumer)
            keep_finished_joins(self._consumer)
            names = [topic.name for topic in topics]
            if group is not None:
                self._consumer.subscribe(names, listener=self._rebalance)
                for name in names:  # a leader that does not know a topic yet deals out none of it, and looks again after five minutes only
                    self._consumer.partitions_for_topic(name)
            else:
                self._consumer.assign([p for name in names for p in self._partitions(name)])

    def poll(self, timeout_s: float = 1.0, max_records: int = 500) -> list[Record]:
        """New records, in offset order within each partition. Empty when there are none."""
        with translated_errors("read from", self._settings):
            batches = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
        records: list[Record] = []
        for partition, batch in batches.items():
            if isinstance(batch[0], Record):
                records += batch
            else:
                records += [Record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in batch]
            self._metrics.add("tidemill_consumed_total", len(batch), topic=partition.topic, part=self._part)
        return records

    def take_assignment(self) -> Assigned | None:
        """What is assigned, when a rebalance happened since the last call; otherwise None.

        A rebalance happens inside ``poll`` only. The records of that poll start, for what is new, at the group's committed offsets: a caller that
        keeps its own offsets must drop them and seek.
        """
        if not self._rebalance.happened:
            return None
        assigned = frozenset((p.topic, p.partition) for p in self._consumer.assignment())
        told = Assigned(assigned, assigned & self._rebalance.held)
        self._rebalance.happened, self._rebalance.held = False, assigned
        return told

    def bounds(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        """First offset that still exists and the next to be written, by (topic, partition). Asks Kafka."""
        asked = [kafka.TopicPartition(*key) for key in partitions]
        with translated_errors("ask", self._settings):
            first, end = (self._consumer.beginning_offsets(asked), self._consumer.end_offsets(asked)) if asked else ({}, {})
        return {(p.topic, p.partition): (first[p], end[p]) for p in asked}

    def committed(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The group's committed offsets by (topic, partition); 0 where there is none. Asks Kafka."""
        with translated_errors("ask", self._settings):
            return {key: self._consumer.committed(kafka.TopicPartition(*key), timeout_ms=self._ask_timeout_ms) or 0 for key in partitions}

    def behind(self, partitions: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
        """Those of the assigned (topic, partition) pairs that hold records which were not polled. Asks Kafka: what the last fetch knew may be old."""
        ends = {place: end for place, (_, end) in self.bounds(partitions).items()}
        with translated_errors("read from", self._settings):
            return {place for place, end in ends.items() if self._consumer.position(kafka.TopicPartition(*place)) < end}

    def positions(self) -> dict[tuple[str, int], int]:
        """Next offset to read of each assigned (topic, partition)."""
        with translated_errors("read from", self._settings):
            return {(p.topic, p.partition): self._consumer.position(p) for p in self._consumer.assignment()}

    def seek(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Continue at these offsets. An offset that retention has deleted moves to the first one that exists."""
        with translated_errors("read from", self._settings):
            partitions = {key: kafka.TopicPartition(*key) for key in positions}
            first = self._consumer.beginning_offsets(list(partitions.values())) if partitions else {}
            for key, offset in positions.items():
                self._consumer.seek(partitions[key], max(offset, first[partitions[key]]))

    def first_since(self, time: datetime) -> dict[tuple[str, int], int]:
        """The offset of the first record that arrived at ``time`` or later, by partition; the end where there is none."""
        with translated_errors("ask", self._settings):
            places = list(self._consumer.assignment())
            ends = self._consumer.end_offsets(places)
            found = self._consumer.offsets_for_times(dict.fromkeys(places, int(time.timestamp() * 1000)))
        return {(p.topic, p.partition): found[p].offset if found.get(p) is not None else ends[p] for p in places}

    def commit(self, positions: Mapping[tuple[str, int], int] | None = None) -> bool:
        """Commit, after the effects are durable. False when it failed, as after a rebalance: the new owner then repeats the work."""
        if not self._grouped:
            raise ValueError("a consumer without a group has nothing to commit")
        offsets = (
            None if positions is None else {kafka.TopicPartition(*key): kafka.OffsetAndMetadata(offset, "", -1) for key, offset in positions.items()}
        )
        try:
            self._consumer.commit(offsets, timeout_ms=self._commit_timeout_ms)
        except KafkaError:
            return False
        return True

    def measure_lag(self) -> int:
        """Number of records not yet read, by asking Kafka for the ends of the log. Also sets the lag metric."""
        with translated_errors("read from", self._settings):
            partitions = list(self._consumer.assignment())
            ends = self._consumer.end_offsets(partitions) if partitions else {}
            by_topic: dict[str, int] = {}
            for partition, end in ends.items():
                by_topic[partition.topic] = by_topic.get(partition.topic, 0) + max(0, end - self._consumer.position(partition))
        for topic, count in by_topic.items():
            self._metrics.set("tidemill_consumer_lag_records", count, topic=topic, part=self._part)
        return sum(by_topic.values())

    def close(self) -> None:
        """Leave the group (if any) and close the connection."""
        self._consumer.close(autocommit=False, timeout_ms=5000)

    def _partitions(self, topic: str) -> list[Any]:
        numbers = self._consumer.partitions_for_topic(topic)
        if not numbers:
            raise ConfigError(
                f"topic {topic} does not exist (`tidemill topics --create` creates it), or {self._settings.principal} may not read it"
                " (`tidemill topics --acls` gives each part its rights)"
            )
        return [kafka.TopicPartition(topic, number) for number in sorted(numbers)]


def read_to_end(settings: KafkaSettings, topic: Topic[Any], part: str, metrics: Metrics, since: datetime | None = None) -> Iterator[Record]:
    """Every record of a topic from its beginning to the end that it has now: what is written meanwhile is left out. ``since``: begin with what
    arrived at this time."""
    consumer = Consumer(settings, [topic], part, metrics)
    try:
        if since is not None:
            consumer.seek(consumer.first_since(since))
        ends = {place: end for place, (first, end) in consumer.bounds(consumer.positions()).items() if first < end}
        while any(consumer.positions()[place] < end for place, end in ends.items()):
            records = consumer.poll(timeout_s=1.0, max_records=5000)
            yield from (record for record in records if record.offset < ends.get((topic.name, record.partition), 0))
    finally:
        consumer.close()


def read_between(settings: KafkaSettings, topic: Topic[Any], partition: int, first: int, end: int, part: str, metrics: Metrics) -> Iterator[Record]:
    """Every record of one partition from offset ``first`` (included) to ``end`` (not included)."""
    where, consumer = (topic.name, partition), Consumer(settings, [topic], part, metrics)
    try:
        consumer._consumer.assign([kafka.TopicPartition(*where)])
        consumer.seek({where: first})
        while consumer.positions()[where] < end:
            yield from (record for record in consumer.poll(timeout_s=1.0, max_records=5000) if record.offset < end)
    finally:
        consumer.close()


def end_offsets(settings: KafkaSettings, topic: Topic[Any], metrics: Metrics) -> dict[int, int]:
    """The current end of a topic: next offset by partition."""
    consumer = Consumer(settings, [topic], "ends", metrics)
    try:
        with translated_errors("ask", settings):
            ends = consumer._consumer.end_offsets(list(consumer._consumer.assignment()))
        return {p.partition: offset for p, offset in ends.items()}
    finally:
        consumer.close()


class _Rebalance(kafka.ConsumerRebalanceListener):
    """Remembers what a rebalance changed. It runs inside the client, so it does no more than that."""

    def __init__(self) -> None:
        self.assignor = SideBySideAssignor()
        self.happened = False
        self.held: frozenset[tuple[str, int]] = frozenset()
        """What was assigned when a rebalance was last told, without what was given up since."""

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """Given up, or lost because the group took this member for dead."""
        gone = {(p.topic, p.partition) for p in revoked}
        self.held, self.assignor.owned, self.happened = self.held - gone, self.assignor.owned - gone, True

    on_partitions_lost = on_partitions_revoked

    def on_partitions_assigned(self, assigned: object) -> None:
        self.happened = True
