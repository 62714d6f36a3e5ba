"""The Kafka producer: idempotent, every record acknowledged by all replicas."""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import kafka
from kafka.errors import KafkaError, MessageSizeTooLargeError
from kafka.producer.record_accumulator import RecordAccumulator

from streams.core.errors import InvalidEvent, Unavailable
from streams.core.events import Event
from streams.core.metrics import Metrics
from streams.core.topics import Topic
from streams.core.traces import Headers
from streams.kafka.client_errors import translate_error, translated_errors
from streams.kafka.kafka_settings import KafkaSettings
from streams.kafka.login import connecting
from streams.kafka.partitioning import partition_of
from streams.kafka.topic_admin import batch_limits

RECORD_OVERHEAD_BYTES = 100
"""Of a batch and its one record, rounded up."""
ASK_ABOVE_BYTES = 16 << 10
"""Before a record of this size is sent, the cluster is asked how much its topics take, once a minute at most."""
BATCH_BYTES = 128 << 10
"""Size of a batch to one partition. Each batch costs a request, and kafka-python's default of 16 KiB holds only eight episodes."""


class RecordPlace(NamedTuple):
    """The place of a record on the log."""

    topic: str
    partition: int
    offset: int


class Publisher(Protocol):
    """Publishes events. Code and tests depend on this protocol instead of Kafka."""

    def send(self, topic: Topic[Any], event: Event, headers: Headers = ()) -> Callable[[], RecordPlace]:
        """Start sending. The returned function waits for the acknowledgement. Both raise InvalidEvent when the event is too large."""

    def retract(self, topic: Topic[Any], key: str) -> Callable[[], RecordPlace]:
        """Start sending a tombstone: a record without a value, after which a compacted topic keeps nothing of that key."""

    def flush(self) -> None:
        """Wait until everything sent is acknowledged, but for records that are too large: their own functions tell. Raises Unavailable."""


class Producer:
    """Idempotent, ``acks=all``. Thread-safe. Satisfies Publisher."""

    def __init__(self, settings: KafkaSettings, metrics: Metrics, client_id: str, linger_ms: int = 5) -> None:
        self._settings, self._metrics = settings, metrics
        self._client_id, self._linger_ms = client_id, linger_ms
        self._failure: BaseException | None = None
        self._on_ended: dict[str, _Ended] = {}
        self._counts: dict[str, tuple[int, float]] = {}
        self._limits: dict[str, int] = {}
        """Bytes that a batch may have, by topic, once they were asked for."""
        self._limits_until_s = 0.0
        self._renewing = threading.Lock()
        self._producer = self._connect()

    def _connect(self) -> Any:
        settings = self._settings
        with connecting(settings):
            return kafka.KafkaProducer(
                **settings.client_options(),
                client_id=self._client_id,
                acks="all",
                enable_idempotence=True,
                linger_ms=self._linger_ms,
                batch_size=BATCH_BYTES,
                compression_type=settings.compression,
                delivery_timeout_ms=int(settings.delivery_timeout_s * 1000),
                max_block_ms=int(settings.request_timeout_s * 1000),
                max_request_size=settings.max_message_bytes,
                allow_auto_create_topics=False,
            )

    def _renew(self, broken: Any) -> None:
        """Connect anew in place of ``broken``, and learn how much topics take. An idempotent client sends nothing more once a record was refused."""
        with self._renewing:
            if self._producer is broken:
                broken.close(timeout=0)
                self._limits, self._limits_until_s = batch_limits(self._settings), time.monotonic() + 60
                self._producer = self._connect()

    def _know_limits(self) -> None:
        """Ask how much topics take. A record that its topic refuses would make the client give up all that it has in hand."""
        if self._settings.compression is None and time.monotonic() >= self._limits_until_s:
            with self._renewing:
                self._limits, self._limits_until_s = batch_limits(self._settings), time.monotonic() + 60

    def send(self, topic: Topic[Any], event: Event, headers: Headers = ()) -> Callable[[], RecordPlace]:
        return self.send_raw(topic.name, event.key.encode(), event.encode(), headers)

    def retract(self, topic: Topic[Any], key: str) -> Callable[[], RecordPlace]:
        return self.send_raw(topic.name, key.encode(), None)

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Callable[[], RecordPlace]:
        """Start sending encoded bytes, as the outbox stores them.

        Where a topic takes less than ``kafka.max_message_bytes`` and we were not told, the broker refuses a record after it was sent, and the
        client gives up all that it has in hand. So the returned function sends its record again where that has happened, and raises InvalidEvent
        (``too_large``) for the one that was the cause.
        """
        producer, future = self._start(topic, key, value, headers)

        def wait() -> RecordPlace:
            if future.is_done and future.exception is None:  # as after a flush
                done = future.value
                return RecordPlace(done.topic, done.partition, done.offset)
            refusing = producer
            try:
                return self._await(future, topic)
            except MessageSizeTooLargeError:
                self._renew(refusing)
            try:
                refusing, again = self._start(topic, key, value, headers)
                return self._await(again, topic)
            except MessageSizeTooLargeError:
                self._renew(refusing)
                raise self._too_large(topic, value) from None

        return wait

    def _start(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> tuple[Any, Any]:
        """The client that sends it, and its future."""
        size = RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"") + sum(len(name) + len(given or b"") + 10 for name, given in headers)
        if size > ASK_ABOVE_BYTES:
            self._know_limits()
        if size > min(self._settings.max_message_bytes, self._limits.get(topic, size)):
            raise self._too_large(topic, value)
        producer = self._producer
        try:
            partition = None if key is None else partition_of(key, self._partitions(topic))
            future = _send(producer, topic, partition, key, value, headers)
        except MessageSizeTooLargeError:  # not of this record: the client has given up because of another
            self._renew(producer)
            return self._start(topic, key, value, headers)
        except KafkaError as error:
            raise translate_error("write to", error, self._settings, topic) from error
        if (ended := self._on_ended.get(topic)) is None:
            ended = self._on_ended[topic] = _Ended(self._metrics, topic, self._failed)
        future.add_both(ended)
        return producer, future

    def _await(self, future: Any, topic: str) -> RecordPlace:
        with translated_errors("write to", self._settings, topic):
            done = future.get(timeout=self._settings.delivery_timeout_s + 5)
        return RecordPlace(done.topic, done.partition, done.offset)

    def _too_large(self, topic: str, value: bytes | None) -> InvalidEvent:
        allowed = self._settings.max_message_bytes
        taken = self._limits.get(topic, allowed)
        limit = f"kafka.max_message_bytes = {allowed}" if taken >= allowed else f"max.message.bytes = {taken} of that topic"
        return InvalidEvent("too_large", f"a record of {len(value or b'')} bytes for {topic} exceeds {limit}")

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
        if not isinstance(error, MessageSizeTooLargeError):  # that is told record by record
            self._failure = error


def _send(producer: Any, topic: str, partition: int | None, key: bytes | None, value: bytes | None, headers: Headers) -> Any:
    """As ``KafkaProducer.send`` does. What that does before it hands the record on, ``_start`` has done: it knows topic, partition and size, and the
    bytes need no serializer. It costs as much as building the record, so the record is handed on here."""
    accumulator = getattr(producer, "_accumulator", None)
    if headers or partition is None or not isinstance(accumulator, RecordAccumulator):
        return producer.send(topic, key=key, value=value, partition=partition, headers=list(headers))
    future, is_full, is_new, _ = accumulator.append(kafka.TopicPartition(topic, partition), None, key, value, [])
    if is_full or is_new:
        producer._sender.wakeup()
    return future


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
