"""The Kafka producer: idempotent, every record acknowledged by all replicas."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import kafka
from kafka.errors import KafkaError, MessageSizeTooLargeError

from streams.core.errors import InvalidEvent, Unavailable
from streams.core.events import Event
from streams.core.metrics import Metrics
from streams.core.topics import Topic
from streams.core.traces import Headers
from streams.kafka.client_errors import translate_error, translated_errors
from streams.kafka.kafka_settings import KafkaSettings
from streams.kafka.login import connecting
from streams.kafka.partitioning import partition_of

BATCH_BYTES = 128 << 10
"""Size of a batch to one partition. Each batch costs a request, and kafka-python's default of 16 KiB holds only eight episodes."""


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """The place of a record on the log."""

    topic: str
    partition: int
    offset: int


class Publisher(Protocol):
    """Publishes events. Code and tests depend on this protocol instead of Kafka."""

    def send(self, topic: Topic[Any], event: Event, headers: Headers = ()) -> Callable[[], RecordPlace]:
        """Start sending. The returned function waits for the acknowledgement. Raises InvalidEvent when the event is too large."""

    def retract(self, topic: Topic[Any], key: str) -> Callable[[], RecordPlace]:
        """Start sending a tombstone: a record without a value, after which a compacted topic keeps nothing of that key."""

    def flush(self) -> None:
        """Wait until everything sent is acknowledged. Raises Unavailable if anything was not."""


class Producer:
    """Idempotent, ``acks=all``. Thread-safe. Satisfies Publisher."""

    def __init__(self, settings: KafkaSettings, metrics: Metrics, client_id: str, linger_ms: int = 5) -> None:
        self._settings, self._metrics = settings, metrics
        self._failure: BaseException | None = None
        self._on_ended: dict[str, _Ended] = {}
        self._counts: dict[str, tuple[int, float]] = {}
        with connecting(self._settings):
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

    def send(self, topic: Topic[Any], event: Event, headers: Headers = ()) -> Callable[[], RecordPlace]:
        return self.send_raw(topic.name, event.key.encode(), event.encode(), headers)

    def retract(self, topic: Topic[Any], key: str) -> Callable[[], RecordPlace]:
        return self.send_raw(topic.name, key.encode(), None)

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Callable[[], RecordPlace]:
        """Start sending encoded bytes, as the outbox stores them."""
        try:
            partition = None if key is None else partition_of(key, self._partitions(topic))
            future = self._producer.send(topic, key=key, value=value, partition=partition, headers=list(headers))
        except MessageSizeTooLargeError:
            raise InvalidEvent(
                "too_large", f"a record of {len(value or b'')} bytes for {topic} exceeds kafka.max_message_bytes = {self._settings.max_message_bytes}"
            ) from None
        except KafkaError as error:
            raise translate_error("write to", error, self._settings, topic) from error
        if (ended := self._on_ended.get(topic)) is None:
            ended = self._on_ended[topic] = _Ended(self._metrics, topic, self._failed)
        future.add_both(ended)

        def wait() -> RecordPlace:
            with translated_errors("write to", self._settings, topic):
                done = future.get(timeout=self._settings.delivery_timeout_s + 5)
            return RecordPlace(done.topic, done.partition, done.offset)

        return wait

    def publish(self, topic: Topic[Any], event: Event, headers: Headers = ()) -> RecordPlace:
        """Send and wait for the acknowledgement. Raises InvalidEvent or Unavailable."""
        return self.send(topic, event, headers)()

    def flush(self) -> None:
        with translated_errors("write to", self._settings):
            self._producer.flush(timeout=self._settings.delivery_timeout_s + 5)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            if isinstance(failure, KafkaError):
                raise translate_error("write to", failure, self._settings) from failure
            raise Unavailable(f"Kafka did not acknowledge a record: {failure}")

    def close(self, timeout_s: float = 10.0) -> None:
        """Send what is buffered and close the connection."""
        self._producer.close(timeout=timeout_s)

    def _partitions(self, topic: str) -> int:
        """Number of partitions of the topic. Asked again every minute, since partitions may be added."""
        count, until = self._counts.get(topic, (0, 0.0))
        if time.monotonic() >= until:
            count = len(self._producer.partitions_for(topic))
            self._counts[topic] = (count, time.monotonic() + 60)
        return count

    def _failed(self, error: BaseException) -> None:
        self._failure = error


class _Ended:
    """Counts acknowledged and failed records of one topic. The client calls it for every record, so it does little."""

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
