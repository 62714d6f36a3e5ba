"""Stand-ins for the log that pass the same contracts as the real thing (tests/contracts)."""

import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streams.core.errors import InvalidEvent
from streams.core.events import Event
from streams.core.topics import Topic
from streams.core.traces import Headers
from streams.kafka import Record, RecordPlace


@dataclass
class FakeLog:
    """Topics in memory: partitions of records, and what groups have committed."""

    partitions: int = 4
    max_message_bytes: int = 4 << 20
    topic_message_bytes: int = 4 << 20
    """What topics take: a broker refuses a larger record after it was sent."""
    records: dict[tuple[str, int], list[Record]] = field(default_factory=dict)
    committed: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def publisher(self) -> "FakePublisher":
        return FakePublisher(self)

    def consumer(self, topics: Iterable[Topic[Any]], group: str | None = None) -> "FakeConsumer":
        return FakeConsumer(self, tuple(topics), group)

    def append(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> RecordPlace:
        """Records of equal key share a partition, in the order in which they come."""
        partition = zlib.crc32(key or b"") % self.count(topic)
        records = self.records.setdefault((topic, partition), [])
        records.append(Record(topic, partition, len(records), int(time.time() * 1000), key, value, headers))
        return RecordPlace(topic, partition, len(records) - 1)

    def events(self, topic: Topic[Any]) -> list[Any]:
        """Everything published on a topic, decoded, partition by partition."""
        return [topic.decode(record.value) for (name, _), records in sorted(self.records.items()) if name == topic.name for record in records]

    def count(self, topic: str) -> int:
        return self.partitions if topic.split(".")[1] in ("episodes", "feedback", "labels") else 1


def _refused() -> RecordPlace:
    raise InvalidEvent("too_large", "the topic does not take a record of this size")


class FakePublisher:
    """Satisfies Publisher; what is sent is acknowledged at once."""

    def __init__(self, log: FakeLog) -> None:
        self._log = log

    def send(self, topic: Topic[Any], event: Event, headers: Headers = ()) -> Callable[[], RecordPlace]:
        return self.send_raw(topic.name, event.key.encode(), event.encode(), headers)

    def retract(self, topic: Topic[Any], key: str) -> Callable[[], RecordPlace]:
        return self.send_raw(topic.name, key.encode(), None)

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Callable[[], RecordPlace]:
        if value is not None and len(value) > self._log.max_message_bytes:
            raise InvalidEvent("too_large", f"a record of {len(value)} bytes exceeds kafka.max_message_bytes = {self._log.max_message_bytes}")
        if value is not None and len(value) > self._log.topic_message_bytes:
            return _refused
        place = self._log.append(topic, key, value, headers)
        return lambda: place

    def publish(self, topic: Topic[Any], event: Event, headers: Headers = ()) -> RecordPlace:
        return self.send(topic, event, headers)()

    def flush(self) -> None:
        return None

    def close(self) -> None:
        return None


class FakeConsumer:
    """A consumer that is its group's only member."""

    def __init__(self, log: FakeLog, topics: tuple[Topic[Any], ...], group: str | None) -> None:
        self._log, self._group, self._dealt = log, group, group is not None
        keys = [(topic.name, partition) for topic in topics for partition in range(log.count(topic.name))]
        self._positions = {key: log.committed.get((group, *key), 0) if group else 0 for key in keys}

    def poll(self, timeout_s: float = 1.0, max_records: int = 500) -> list[Record]:
        found = [r for key, offset in self._positions.items() for r in self._log.records.get(key, [])[offset:]][:max_records]
        for record in found:
            self._positions[record.topic, record.partition] = record.offset + 1
        return found

    def take_assignment(self) -> frozenset[tuple[str, int]] | None:
        dealt, self._dealt = self._dealt, False
        return frozenset(self._positions) if dealt else None

    def positions(self) -> dict[tuple[str, int], int]:
        return dict(self._positions)

    def bounds(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        return {key: (0, len(self._log.records.get(key, []))) for key in partitions}

    def committed(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        return {key: self._log.committed.get((self._group or "", *key), 0) for key in partitions}

    def is_behind(self, topic: str, partition: int) -> bool:
        return self._positions[topic, partition] < len(self._log.records.get((topic, partition), []))

    def seek(self, positions: Mapping[tuple[str, int], int]) -> None:
        self._positions.update({key: max(0, offset) for key, offset in positions.items()})

    def commit(self, positions: Mapping[tuple[str, int], int] | None = None) -> bool:
        if self._group is None:
            raise ValueError("a consumer without a group has nothing to commit")
        self._log.committed.update({(self._group, *key): offset for key, offset in (positions or self._positions).items()})
        return True

    def measure_lag(self) -> int:
        return sum(len(self._log.records.get(key, [])) - offset for key, offset in self._positions.items())

    def close(self) -> None:
        return None
