"""kafka-python's three clients over a simulated log, so that Tidemill's own Consumer and Producer, and every part on them, run unchanged.

Only what ``streams/kafka`` calls is here, with the client's own errors.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import kafka
import pytest
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import CommitFailedError, KafkaTimeoutError, MessageSizeTooLargeError, OffsetOutOfRangeError

from streams.core.metrics import Metrics
from streams.core.topics import Topic
from streams.kafka import Consumer, KafkaSettings, Producer, Record
from tests.support.simulated_log import SimulatedLog

Place = tuple[str, int]


def install(monkeypatch: pytest.MonkeyPatch, log: SimulatedLog) -> SimulatedLog:
    """Let every client that is made from now on stand on ``log``. Returns the log."""
    numbers = itertools.count()
    made: dict[str, Any] = {"KafkaConsumer": SimulatedConsumer, "KafkaProducer": SimulatedProducer, "KafkaAdminClient": SimulatedAdmin}
    for name, client in made.items():
        monkeypatch.setattr(kafka, name, lambda *given, client=client, **options: client(log, next(numbers), *given, **options))
    return log


def member_of(options: Mapping[str, Any]) -> str:
    """Who asks: the host of its first server. Machines of a simulation are told apart by it."""
    return str(options["bootstrap_servers"][0]).rpartition(":")[0]


def at(member: str) -> KafkaSettings:
    """Settings of that machine's clients."""
    return KafkaSettings(bootstrap_servers=f"{member}:1")


def consumer(topics: Iterable[Topic[Any]], group: str | None = None, member: str = "test") -> Consumer:
    """Tidemill's own consumer, on the log that is installed."""
    return Consumer(at(member), list(topics), "test", Metrics(), group=group)


def producer(member: str = "test") -> Producer:
    """Tidemill's own producer, on the log that is installed."""
    return Producer(at(member), Metrics(), "test")


def producer_on(log: SimulatedLog) -> Producer:
    """The same on a log that is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch, log)
        return producer()


class SimulatedConsumer:
    """kafka.KafkaConsumer."""

    def __init__(self, log: SimulatedLog, number: int, **options: Any) -> None:
        self._log, self._options = log, options
        self.member, self._group_name, self._reset = member_of(options), options["group_id"], options["auto_offset_reset"]
        self._id = f"{self.member}-{number:06}"
        self._topics: tuple[str, ...] = ()
        self._listener: Any = None
        self._generation = -1
        self._positions: dict[Place, int] = {}
        self._highwater: dict[Place, int] = {}
        self._ask("connect")

    def _ask(self, operation: str) -> None:
        self._log.interrupt(self.member, operation)

    def subscribe(self, topics: Sequence[str], listener: Any = None) -> None:
        self._topics, self._listener = tuple(topics), listener

    def assign(self, partitions: Iterable[Any]) -> None:
        with self._log.lock:
            self._positions = {place: self._start(place) for place in map(tuple, partitions)}
            self._highwater = {}

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {number for name, number in self._log.partitions if name == topic} or None

    def assignment(self) -> set[Any]:
        return {kafka.TopicPartition(*place) for place in self._positions}

    def poll(self, timeout_ms: int = 0, max_records: int = 500) -> dict[Any, list[Any]]:
        self._ask("poll")
        with self._log.lock:
            if self._group_name is not None and not self._take_part():
                return {}
            found = self._fetch(max_records)
            if not found and timeout_ms and self._log.chance is None:
                self._log.appended.wait(min(timeout_ms, 20) / 1000)
                found = self._fetch(max_records)
            return found

    def _take_part(self) -> bool:
        """Join, give up and take partitions as the group says. True when it may fetch."""
        group = self._log.group(self._group_name)
        if self._id in group.members:
            group.members[self._id].silent_since_ms = None
        group.sweep()
        if self._id not in group.members:
            self._give_up(set(self._positions))
            group.join(self._id, self._topics)
        elif group.joined is not None and self._id not in group.joined:
            if not self._log.cooperative:
                self._give_up(set(self._positions))
            group.join(self._id, self._topics)
        member = group.members[self._id]
        member.owned = set(self._positions)
        if not group.complete():
            return False
        if self._generation == group.generation:
            return True
        self._generation = group.generation
        lost, new = set(self._positions) - member.dealt, member.dealt - set(self._positions)
        self._give_up(lost)
        for place in new:
            self._positions[place] = self._start(place)
        member.owned = set(self._positions)
        self._listener.on_partitions_assigned([kafka.TopicPartition(*place) for place in new])
        if lost:
            group.join(self._id, self._topics)  # the others are given what it gave up
        return not lost

    def _give_up(self, places: set[Place]) -> None:
        if places:
            self._listener.on_partitions_revoked([kafka.TopicPartition(*place) for place in places])
        for place in places:
            self._positions.pop(place, None)
            self._highwater.pop(place, None)

    def _start(self, place: Place) -> int:
        committed = self._log.group(self._group_name).committed.get(place) if self._group_name is not None else None
        held = self._log.partitions[place]
        return committed if committed is not None else held.start if self._reset == "earliest" else held.end

    def _fetch(self, max_records: int) -> dict[Any, list[Any]]:
        chance, found, left = self._log.chance, {}, max_records
        places = sorted(self._positions)
        if chance is not None:
            chance.shuffle(places)
        for place in places:
            if chance is not None and chance.random() < 0.2:
                continue  # this partition's broker has not answered yet
            held, position = self._log.partitions[place], self._positions[place]
            if not held.start <= position <= held.end:
                if self._reset not in ("earliest", "latest"):
                    raise OffsetOutOfRangeError({kafka.TopicPartition(*place): position})
                position = self._positions[place] = held.start if self._reset == "earliest" else held.end
            self._highwater[place] = held.end
            wanted = left if chance is None or chance.random() < 0.7 else chance.randint(0, left)
            available = held.from_offset(position)
            records = available[:wanted]
            if records:
                found[kafka.TopicPartition(*place)] = [_consumer_record(record) for record in records]
                left -= len(records)
            if len(records) == len(available):
                self._positions[place] = held.end  # also over what compaction has taken
            elif records:
                self._positions[place] = records[-1].offset + 1
        return found

    def beginning_offsets(self, partitions: Iterable[Any]) -> dict[Any, int]:
        self._ask("ask")
        with self._log.lock:
            return {each: self._log.partitions[tuple(each)].start for each in partitions}

    def end_offsets(self, partitions: Iterable[Any]) -> dict[Any, int]:
        self._ask("ask")
        with self._log.lock:
            return {each: self._log.partitions[tuple(each)].end for each in partitions}

    def committed(self, partition: Any, timeout_ms: int | None = None) -> int | None:
        self._ask("ask")
        with self._log.lock:
            return self._log.group(self._group_name).committed.get(tuple(partition))

    def highwater(self, partition: Any) -> int | None:
        return self._highwater.get(tuple(partition))

    def position(self, partition: Any) -> int:
        return self._positions[tuple(partition)]

    def seek(self, partition: Any, offset: int) -> None:
        assert tuple(partition) in self._positions, "Unassigned partition"
        self._positions[tuple(partition)] = offset

    def commit(self, offsets: Mapping[Any, Any] | None = None, timeout_ms: int | None = None) -> None:
        self._ask("commit")
        with self._log.lock:
            told = dict(self._positions) if offsets is None else {tuple(place): each.offset for place, each in offsets.items()}
            if not self._log.group(self._group_name).commit(self._id, self._generation, told):
                raise CommitFailedError("the group has another generation")

    def close(self, autocommit: bool = True, timeout_ms: int | None = None) -> None:
        with self._log.lock:
            if self._group_name is not None:
                self._log.group(self._group_name).leave(self._id)


def fall_silent(log: SimulatedLog, member: str) -> None:
    """The machine's heartbeats stop, as in a kill, a long pause or a cut network. It comes back when one of its consumers polls again."""
    with log.lock:
        for group in log.groups.values():
            for name, each in group.members.items():
                if name.rpartition("-")[0] == member and each.silent_since_ms is None:
                    each.silent_since_ms = log.now_ms


def _consumer_record(record: Record) -> Any:
    return ConsumerRecord(
        record.topic, record.partition, -1, record.offset, record.timestamp_ms, 1, record.key, record.value, list(record.headers), None, -1, -1, -1
    )


class SimulatedFuture:
    """What a producer gives back for a record."""

    def __init__(self, deliver: Callable[[], None]) -> None:
        self._deliver = deliver
        self._callbacks: list[Callable[[object], None]] = []
        self.value: Record | None = None
        self.exception: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.value is not None or self.exception is not None

    def add_both(self, callback: Callable[[object], None]) -> None:
        if self.is_done:
            callback(self.exception or self.value)
        else:
            self._callbacks.append(callback)

    def end(self, result: Record | None, error: Exception | None = None) -> None:
        self.value, self.exception = result, error
        for callback in self._callbacks:
            callback(error or result)

    def get(self, timeout: float | None = None) -> Record:
        self._deliver()
        if self.exception is not None:
            raise self.exception
        if self.value is None:
            raise KafkaTimeoutError("no acknowledgement in time")
        return self.value


class SimulatedProducer:
    """kafka.KafkaProducer. Without a seed a record is on the log as soon as it is sent; with one it waits for ``flush``, or some of the time."""

    def __init__(self, log: SimulatedLog, number: int, **options: Any) -> None:
        self._log, self.member = log, member_of(options)
        self._limit = options["max_request_size"]
        self._waiting: list[tuple[str, int, bytes | None, bytes | None, Any, SimulatedFuture]] = []
        log.producers.append(self)
        log.interrupt(self.member, "connect")

    def partitions_for(self, topic: str) -> set[int]:
        return {number for name, number in self._log.partitions if name == topic}

    def send(
        self, topic: str, value: bytes | None = None, key: bytes | None = None, partition: int | None = None, headers: Any = ()
    ) -> SimulatedFuture:
        self._log.interrupt(self.member, "send")
        size = len(value or b"") + len(key or b"")
        if size > self._limit:
            raise MessageSizeTooLargeError(f"{size} bytes are more than max_request_size = {self._limit}")
        future = SimulatedFuture(self.deliver)
        number = partition if partition is not None else (self._log.chance.randrange(self._log.count(topic)) if self._log.chance else 0)
        with self._log.lock:
            self._waiting.append((topic, number, key, value, tuple(headers), future))
            if self._log.chance is None or self._log.chance.random() < 0.3:
                self.deliver()
        return future

    def deliver(self) -> None:
        """What was sent reaches the log."""
        with self._log.lock:
            waiting, self._waiting = self._waiting, []
            for topic, number, key, value, headers, future in waiting:
                if len(value or b"") > self._log.topic_bytes.get(topic, self._limit):
                    future.end(None, MessageSizeTooLargeError(f"{topic} does not take {len(value or b'')} bytes"))
                else:
                    future.end(self._log.append(topic, number, key, value, headers))

    def flush(self, timeout: float | None = None) -> None:
        self._log.interrupt(self.member, "flush")
        self.deliver()

    def close(self, timeout: float | None = None) -> None:
        self.deliver()


class SimulatedAdmin:
    """kafka.KafkaAdminClient: what Tidemill asks of it."""

    def __init__(self, log: SimulatedLog, number: int, **options: Any) -> None:
        self._log, self.member = log, member_of(options)
        log.interrupt(self.member, "connect")

    def list_group_offsets(self, groups: Sequence[str]) -> dict[str, dict[Any, Any]]:
        return {name: {kafka.TopicPartition(*p): kafka.OffsetAndMetadata(o, "", -1) for p, o in self._log.committed(name).items()} for name in groups}

    def list_topics(self) -> list[str]:
        return sorted({topic for topic, _ in self._log.partitions})

    def describe_topics(self) -> list[dict[str, Any]]:
        return [{"name": topic, "partitions": list(range(self._log.count(topic)))} for topic in self.list_topics()]

    def describe_configs(self, resources: Sequence[Any], config_filter: str = "") -> dict[str, Any]:
        return {"topic": {each.name: {key: {"value": value} for key, value in self._log.configs(each.name).items()} for each in resources}}

    def delete_records(self, offsets: Mapping[Any, int]) -> None:
        for place, offset in offsets.items():
            self._log.delete_before(*tuple(place), offset)

    def close(self) -> None:
        return None
