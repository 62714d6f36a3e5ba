"""Kafka: the one home of kafka-python. A producer that waits for acknowledgement, a consumer with manual commits, an admin.

Outside this file nobody imports kafka; errors of the client come out as ours.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import kafka
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import CoordinatorNotAvailableError, KafkaError, MessageSizeTooLargeError, NotCoordinatorError

from streams.errors import ConfigError, InvalidEvent, Unavailable
from streams.events import Event
from streams.kafka_settings import KafkaSettings as KafkaSettings
from streams.metrics import Metrics
from streams.partitioning import partition_of
from streams.topics import TOPICS, Topic

BATCH_BYTES = 128 << 10
"""Sent together to one partition: each batch costs a request, and kafka-python's own 16 KiB hold eight episodes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it lies on the log."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class Publisher(Protocol):
    """Takes events to the log. The seam that steps and tests see instead of Kafka."""

    def send(self, topic: Topic[Any], event: Event) -> Callable[[], Place]:
        """Begin to send; calling what is returned waits for the acknowledgement. Raises InvalidEvent when too large."""

    def flush(self) -> None:
        """Wait until everything sent is acknowledged. Raises Unavailable if anything was not."""


class Producer:
    """Idempotent, ``acks=all``. Thread-safe. Satisfies Publisher."""

    def __init__(self, settings: KafkaSettings, metrics: Metrics, client_id: str, linger_ms: int = 5) -> None:
        self._settings, self._metrics = settings, metrics
        self._failure: BaseException | None = None
        self._ended: dict[str, _Ended] = {}
        self._counts: dict[str, tuple[int, float]] = {}
        with _as_ours("connect to"):
            self._producer = kafka.KafkaProducer(
                **settings.client_options(),
                client_id=client_id,
                acks="all",
                enable_idempotence=True,
                linger_ms=linger_ms,
                batch_size=BATCH_BYTES,
                compression_type=settings.compression,
                delivery_timeout_ms=int(settings.delivery_timeout_s * 1000),
                max_block_ms=int(settings.request_timeout_s * 1000),
                max_request_size=settings.max_message_bytes,
                allow_auto_create_topics=False,
            )

    def send(self, topic: Topic[Any], event: Event) -> Callable[[], Place]:
        return self.send_raw(topic.name, event.key.encode(), event.encode())

    def send_raw(self, topic: str, key: bytes | None, value: bytes) -> Callable[[], Place]:
        """Bytes as they are; for the outbox, which encoded them long ago."""
        try:
            partition = None if key is None else partition_of(key, self._partitions(topic))
            future = self._producer.send(topic, key=key, value=value, partition=partition)
        except MessageSizeTooLargeError:
            raise InvalidEvent(
                "too_large", f"a record of {len(value)} bytes for {topic} exceeds kafka.max_message_bytes = {self._settings.max_message_bytes}"
            ) from None
        except KafkaError as error:
            raise _ours("write to", error) from error
        if (ended := self._ended.get(topic)) is None:
            ended = self._ended[topic] = _Ended(self._metrics, topic, self._failed)
        future.add_both(ended)

        def wait() -> Place:
            with _as_ours("write to"):
                done = future.get(timeout=self._settings.delivery_timeout_s + 5)
            return Place(done.topic, done.partition, done.offset)

        return wait

    def publish(self, topic: Topic[Any], event: Event) -> Place:
        """Send and wait for the acknowledgement. Raises InvalidEvent or Unavailable."""
        return self.send(topic, event)()

    def flush(self) -> None:
        with _as_ours("write to"):
            self._producer.flush(timeout=self._settings.delivery_timeout_s + 5)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise Unavailable(f"Kafka did not acknowledge a record: {failure}")

    def close(self, timeout_s: float = 10.0) -> None:
        """Send what is buffered and hang up."""
        self._producer.close(timeout=timeout_s)

    def _partitions(self, topic: str) -> int:
        """How many the topic has; asked again every minute, for it may be given more."""
        count, until = self._counts.get(topic, (0, 0.0))
        if time.monotonic() >= until:
            count = len(self._producer.partitions_for(topic))
            self._counts[topic] = (count, time.monotonic() + 60)
        return count

    def _failed(self, error: BaseException) -> None:
        self._failure = error


class _Ended:
    """Counts how sending ended, for one topic. Called by the client for every record, so it does little."""

    def __init__(self, metrics: Metrics, topic: str, failed: Callable[[BaseException], None]) -> None:
        self._published = metrics.adder("tidemill_published_total", topic=topic)
        self._refused = metrics.adder("tidemill_publish_failures_total", topic=topic)
        self._failed = failed

    def __call__(self, result: object) -> None:
        if isinstance(result, BaseException):
            self._refused()
            self._failed(result)
        else:
            self._published()


class Consumer:
    """Reads raw records and commits by hand. With a group, partitions are shared; without, it reads all of them.

    A start position is ``earliest`` unless the group has committed one. Not thread-safe.
    """

    def __init__(self, settings: KafkaSettings, topics: Sequence[Topic[Any]], part: str, metrics: Metrics, group: str | None = None,
                 start: Literal["earliest", "latest"] = "earliest") -> None:  # fmt: skip
        self._metrics, self._part, self._grouped = metrics, part, group is not None
        self._commit_timeout_ms = int(settings.session_timeout_s * 1000)  # without one it is tried for ever
        with _as_ours("connect to"):
            self._consumer = kafka.KafkaConsumer(
                **settings.client_options(),
                client_id=f"tidemill-{part}",
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset=start,
                session_timeout_ms=int(settings.session_timeout_s * 1000),
                heartbeat_interval_ms=int(settings.session_timeout_s * 1000 / 4),
                max_partition_fetch_bytes=settings.max_message_bytes * 2,
                partition_assignment_strategy=(RangePartitionAssignor,),  # equal partitions of the topics go to one member
                allow_auto_create_topics=False,
            )
            names = [topic.name for topic in topics]
            self._rebalance = _Rebalance()
            if group is not None:
                self._consumer.subscribe(names, listener=self._rebalance)
            else:
                self._consumer.assign([p for name in names for p in self._partitions(name)])

    def poll(self, timeout_s: float = 1.0, max_records: int = 500) -> list[Record]:
        """What has come, in offset order within each partition; an empty list when nothing did."""
        with _as_ours("read from"):
            batches = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
        records = [Record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value) for batch in batches.values() for r in batch]
        for partition, batch in batches.items():
            self._metrics.add("tidemill_consumed_total", len(batch), topic=partition.topic, part=self._part)
        return records

    def rebalanced(self) -> frozenset[tuple[str, int]] | None:
        """What is assigned now, as (topic, partition), when that was dealt anew since the last call; else None.

        Partitions are dealt inside ``poll`` only. What that poll returned starts at the group's committed offsets: who keeps
        offsets of their own drops it and seeks.
        """
        if not self._rebalance.happened:
            return None
        self._rebalance.happened = False
        return frozenset((p.topic, p.partition) for p in self._consumer.assignment())

    def bounds(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        """First offset still there, and the next to be written, by (topic, partition)."""
        asked = [kafka.TopicPartition(*key) for key in partitions]
        with _as_ours("ask"):
            first, end = (self._consumer.beginning_offsets(asked), self._consumer.end_offsets(asked)) if asked else ({}, {})
        return {(p.topic, p.partition): (first[p], end[p]) for p in asked}

    def is_behind(self, topic: str, partition: int) -> bool:
        """True until everything that the last fetch knew of has been polled. Asks nobody."""
        where = kafka.TopicPartition(topic, partition)
        end = self._consumer.highwater(where)
        with _as_ours("read from"):
            return end is None or self._consumer.position(where) < end

    def positions(self) -> dict[tuple[str, int], int]:
        """Next offset to read, by (topic, partition), of what is assigned now."""
        with _as_ours("read from"):
            return {(p.topic, p.partition): self._consumer.position(p) for p in self._consumer.assignment()}

    def seek(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Go on from these offsets. A position that retention has deleted moves to the beginning."""
        with _as_ours("read from"):
            partitions = {key: kafka.TopicPartition(*key) for key in positions}
            first = self._consumer.beginning_offsets(list(partitions.values())) if partitions else {}
            for key, offset in positions.items():
                self._consumer.seek(partitions[key], max(offset, first[partitions[key]]))

    def commit(self, positions: Mapping[tuple[str, int], int] | None = None) -> bool:
        """Commit after the effects are durable. False when the group was rebalanced meanwhile: the new owner redoes the work."""
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

    def lag(self) -> int:
        """Records between the positions and the ends of the log; also sets the lag metric."""
        with _as_ours("read from"):
            partitions = list(self._consumer.assignment())
            ends = self._consumer.end_offsets(partitions) if partitions else {}
            by_topic: dict[str, int] = {}
            for partition, end in ends.items():
                by_topic[partition.topic] = by_topic.get(partition.topic, 0) + max(0, end - self._consumer.position(partition))
        for topic, count in by_topic.items():
            self._metrics.set("tidemill_consumer_lag_records", count, topic=topic, part=self._part)
        return sum(by_topic.values())

    def close(self) -> None:
        """Leave the group (if any) and hang up."""
        self._consumer.close(autocommit=False, timeout_ms=5000)

    def _partitions(self, topic: str) -> list[Any]:
        numbers = self._consumer.partitions_for_topic(topic)
        if not numbers:
            raise ConfigError(f"topic {topic} does not exist: create it with `tidemill topics --create`")
        return [kafka.TopicPartition(topic, number) for number in sorted(numbers)]


def read_to_end(settings: KafkaSettings, topic: Topic[Any], part: str, metrics: Metrics) -> Iterator[Record]:
    """Every record of a topic from its beginning to where it ends now."""
    consumer = Consumer(settings, [topic], part, metrics)
    try:
        while consumer.lag():
            yield from consumer.poll(timeout_s=1.0, max_records=5000)
    finally:
        consumer.close()


def committed_offsets(settings: KafkaSettings, group: str) -> dict[tuple[str, int], int]:
    """What a group has committed, by (topic, partition)."""
    admin, until = _admin(settings), time.monotonic() + settings.request_timeout_s
    try:
        while True:
            try:
                with _as_ours("ask"):
                    offsets = admin.list_group_offsets([group])[group]
                break
            except Unavailable as error:  # the first question of its life makes a cluster create the topic of the answers
                if not isinstance(error.__cause__, CoordinatorNotAvailableError | NotCoordinatorError) or time.monotonic() > until:
                    raise
                time.sleep(0.2)
    finally:
        admin.close()
    return {(p.topic, p.partition): o.offset for p, o in offsets.items() if o.offset >= 0}


def end_offsets(settings: KafkaSettings, topic: Topic[Any], metrics: Metrics) -> dict[int, int]:
    """Where a topic ends now: the next offset by partition."""
    consumer = Consumer(settings, [topic], "ends", metrics)
    try:
        with _as_ours("ask"):
            ends = consumer._consumer.end_offsets(list(consumer._consumer.assignment()))
        return {p.partition: offset for p, offset in ends.items()}
    finally:
        consumer.close()


def ready(settings: KafkaSettings) -> bool:
    """True when a metadata request is answered."""
    try:
        admin = _admin(settings)
    except Unavailable:
        return False
    try:
        admin.list_topics()
    except KafkaError:
        return False
    finally:
        admin.close()
    return True


def wanted_topics(settings: KafkaSettings) -> dict[str, dict[str, Any]]:
    """The topics as they should be: partitions, replication and configuration by name."""
    return {
        topic.name: {
            "num_partitions": settings.partitions if topic.partitioned else 1,
            "replication_factor": settings.replication,
            "configs": {
                "cleanup.policy": "compact" if topic.compacted else "delete",
                "retention.ms": str(topic.retention_ms),
                "message.timestamp.type": "LogAppendTime",  # the broker's clock says when a record came, not a sender's
                "max.message.bytes": str(settings.max_message_bytes),
            },
        }
        for topic in TOPICS
    }


def topic_differences(settings: KafkaSettings) -> dict[str, list[str]]:
    """What differs between the table and the cluster, in words, by topic; ``missing`` when it is not there."""
    admin = _admin(settings)
    try:
        with _as_ours("ask"):
            wanted, found = wanted_topics(settings), {t["name"]: t for t in admin.describe_topics() if t["name"] in wanted_topics(settings)}
            resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in sorted(found)]
            configs = admin.describe_configs(resources, config_filter="all")["topic"] if found else {}
    finally:
        admin.close()
    return {name: rows for name in wanted if (rows := _differences(wanted[name], found.get(name), configs.get(name, {})))}


def create_topics(settings: KafkaSettings) -> list[str]:
    """Create the topics that are missing; returns their names. What exists is left as it is."""
    missing = [name for name, rows in topic_differences(settings).items() if rows == ["missing"]]
    if missing:
        admin = _admin(settings)
        try:
            with _as_ours("create topics on"):
                admin.create_topics({name: wanted_topics(settings)[name] for name in missing}, wait_for_metadata=True)
        finally:
            admin.close()
    return missing


def _differences(wanted: dict[str, Any], found: dict[str, Any] | None, configs: dict[str, Any]) -> list[str]:
    if found is None:
        return ["missing"]
    rows = []
    if (count := len(found["partitions"])) != wanted["num_partitions"]:
        rows.append(f"partitions: {count}, should be {wanted['num_partitions']}")
    for key, value in wanted["configs"].items():
        is_now = configs.get(key)
        now = is_now.get("value") if isinstance(is_now, dict) else is_now
        if now != value:
            rows.append(f"{key}: {now}, should be {value}")
    return rows


def _admin(settings: KafkaSettings) -> Any:
    with _as_ours("connect to"):
        return kafka.KafkaAdminClient(**settings.client_options(), client_id="tidemill-admin")


class _Rebalance(kafka.ConsumerRebalanceListener):
    """Remembers that partitions were dealt anew. It runs inside the client, so it does no more than that."""

    happened = False

    def on_partitions_revoked(self, revoked: object) -> None:
        self.happened = True

    def on_partitions_assigned(self, assigned: object) -> None:
        self.happened = True


class _as_ours:
    """Turns the client's errors into Unavailable; sizes are the caller's to handle."""

    def __init__(self, verb: str) -> None:
        self._verb = verb

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KafkaError) and not isinstance(error, MessageSizeTooLargeError):
            raise _ours(self._verb, error) from error


def _ours(verb: str, error: KafkaError) -> Unavailable:
    return Unavailable(f"cannot {verb} Kafka: {type(error).__name__}: {error}")
