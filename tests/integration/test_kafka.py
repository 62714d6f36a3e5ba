"""The log's client against a real Kafka that is set up otherwise, goes away, and forgets."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import aiokafka
import kafka
import pytest

from infra.local.embedded_broker import Broker, BrokerSettings, free_port
from streams.core.errors import ConfigError, InvalidEvent, Unavailable
from streams.core.events import Erasure, Feedback, new_id, person_of
from streams.core.metrics import Metrics
from streams.core.topics import DEAD_LETTERS, EPISODES, ERASURES, FEEDBACK, LABELS, TOPICS
from streams.kafka import (
    Consumer,
    Producer,
    committed_offsets,
    create_topics,
    end_offsets,
    kafka_answers,
    read_between,
    read_to_end,
    topic_differences,
    wanted_topics,
)
from streams.kafka.kafka_settings import KafkaSettings
from streams.outbox.outbox import Outbox

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """On a port that it keeps over a restart; in the moment before it listens another process may take it, so it has three tries."""
    for left in (2, 1, 0):
        running = Broker(BrokerSettings(port=free_port()), tmp_path / f"broker-{left}")
        try:
            running.start()
            break
        except (ConfigError, Unavailable):
            running.stop()
            if not left:
                raise
    yield running
    running.stop()


def erasure(number: int) -> Erasure:
    return Erasure.of(f"user-{number}", requested_by="x", at=NOW)


def test_topics_are_made_once_and_what_differs_is_told_in_words(empty_kafka: KafkaSettings) -> None:
    settings = empty_kafka.model_copy(update={"partitions": 3})
    assert topic_differences(settings) == {topic.name: ["missing"] for topic in TOPICS}
    admin = kafka.KafkaAdminClient(**settings.client_options())
    admin.create_topics({LABELS.name: {"num_partitions": 2, "replication_factor": 1, "configs": {"retention.ms": "1000"}}})
    admin.close()
    made = create_topics(settings)
    assert sorted(made) == sorted(topic.name for topic in TOPICS if topic is not LABELS)
    assert create_topics(settings) == []
    differences = topic_differences(settings)
    assert set(differences) == {LABELS.name}
    assert "partitions: 2, should be 3" in differences[LABELS.name]
    assert "cleanup.policy: delete, should be compact" in differences[LABELS.name]
    assert "retention.ms: 1000, should be -1" in differences[LABELS.name]
    assert len(end_offsets(settings, EPISODES, Metrics())) == 3


def test_a_broker_that_goes_away_is_unavailable_and_comes_back_with_all_it_acknowledged(broker: Broker) -> None:
    settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, request_timeout_s=3, delivery_timeout_s=4, session_timeout_s=6)
    create_topics(settings)
    producer, metrics = Producer(settings, Metrics(), "test"), Metrics()
    consumer = Consumer(settings, [ERASURES], "test", metrics, group="g")
    for number in range(3):
        producer.publish(ERASURES, erasure(number))
    assert len(_offsets(consumer, 3)) == 3
    broker.kill()
    producer.send(ERASURES, erasure(3))
    with pytest.raises(Unavailable):
        producer.flush()
    assert consumer.poll(1.0) == []
    assert consumer.commit() is False
    assert not kafka_answers(settings)
    asks = (
        lambda: committed_offsets(settings, "g"),
        lambda: list(read_to_end(settings, ERASURES, "test", metrics)),
        lambda: create_topics(settings),
    )
    for ask in asks:
        with pytest.raises(Unavailable):
            ask()
    broker.start()
    again = Producer(settings, Metrics(), "test")
    again.publish(ERASURES, erasure(4))
    users = [ERASURES.decode(record.value).person for record in read_to_end(settings, ERASURES, "test", metrics)]
    assert users[:3] == [person_of(f"user-{number}") for number in range(3)]
    assert users[-1] == person_of("user-4")
    assert len(set(users)) == len(users)
    for each in (producer, again, consumer):
        each.close()


def test_a_failed_send_is_counted_and_told_once(broker: Broker) -> None:
    settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, request_timeout_s=3, delivery_timeout_s=4)
    create_topics(settings)
    metrics = Metrics()
    producer = Producer(settings, metrics, "test")
    producer.publish(ERASURES, erasure(0))
    assert metrics.value("tidemill_published_total", topic=ERASURES.name) == 1
    broker.kill()
    wait = producer.send(ERASURES, erasure(1))
    with pytest.raises(Unavailable):
        wait()
    with pytest.raises(Unavailable):
        producer.flush()
    producer.flush()
    assert metrics.value("tidemill_publish_failures_total", topic=ERASURES.name) == 1
    assert metrics.value("tidemill_published_total", topic=ERASURES.name) == 1
    producer.close(timeout_s=1)


def test_a_position_that_was_deleted_moves_to_the_beginning_and_one_beyond_the_end_too(empty_kafka: KafkaSettings) -> None:
    create_topics(settings := empty_kafka)
    producer, place = Producer(settings, Metrics(), "test"), (DEAD_LETTERS.name, 0)
    for number in range(10):
        producer.send_raw(DEAD_LETTERS.name, b"k", str(number).encode())()
    admin = kafka.KafkaAdminClient(**settings.client_options())
    admin.delete_records({kafka.TopicPartition(*place): 4})  # of a topic that is not compacted: Kafka refuses it of others
    admin.close()
    consumer = Consumer(settings, [DEAD_LETTERS], "test", Metrics())
    assert consumer.bounds([place]) == {place: (4, 10)}
    for start in (1, 99):
        consumer.seek({place: start})
        assert _offsets(consumer, 6) == [4, 5, 6, 7, 8, 9]
    consumer.close()
    producer.close()


def test_partitions_of_what_is_joined_are_dealt_side_by_side_and_anew_when_a_member_comes_and_goes(kafka_settings: KafkaSettings) -> None:
    group, metrics = new_id("group"), Metrics()
    one = Consumer(kafka_settings, [EPISODES, FEEDBACK], "one", metrics, group)
    dealt = _dealt([one])
    assert len(dealt[0]) == 8
    two = Consumer(kafka_settings, [EPISODES, FEEDBACK], "two", metrics, group)
    dealt = _dealt([one, two])
    for mine in dealt:
        assert len(mine) == 4
        assert {p for topic, p in mine if topic == EPISODES.name} == {p for topic, p in mine if topic == FEEDBACK.name}
    assert not dealt[0] & dealt[1]
    two.close()
    assert len(_dealt([one])[0]) == 8
    assert one.take_assignment() is None
    one.close()


def _offsets(consumer: Consumer, count: int) -> list[int]:
    """Of what comes, until there are so many."""
    offsets: list[int] = []
    until = time.monotonic() + 60
    while len(offsets) < count and time.monotonic() < until:
        offsets += [record.offset for record in consumer.poll(0.3)]
    return offsets


def _dealt(consumers: list[Consumer]) -> list[frozenset[tuple[str, int]]]:
    """What each owns once all have been dealt anew and nothing changed for a while."""
    owned: list[frozenset[tuple[str, int]]] = [frozenset()] * len(consumers)
    quiet_since = time.monotonic()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for index, consumer in enumerate(consumers):
            consumer.poll(0.2)
            if (now := consumer.take_assignment()) is not None:
                owned[index], quiet_since = now.partitions, time.monotonic()
        if all(owned) and time.monotonic() - quiet_since > 5:
            return owned
    raise AssertionError(f"never settled: {owned}")


def test_a_topic_that_is_not_there_is_the_operators_to_make(empty_kafka: KafkaSettings) -> None:
    settings = empty_kafka.model_copy(update={"request_timeout_s": 5.0})
    with pytest.raises(ConfigError, match="tidemill topics --create"):
        Consumer(settings, [EPISODES], "test", Metrics())
    producer = Producer(settings, Metrics(), "test")
    with pytest.raises(Unavailable):
        producer.publish(EPISODES, erasure(0))
    producer.close(timeout_s=1)


def test_a_setting_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=r"kafka\.bootstrap_servers"):
        Producer(KafkaSettings(), Metrics(), "test")


def test_the_largest_event_is_what_the_topics_take(kafka_settings: KafkaSettings) -> None:
    assert {each["configs"]["max.message.bytes"] for each in wanted_topics(kafka_settings).values()} == {str(kafka_settings.max_message_bytes)}
    producer = Producer(kafka_settings, Metrics(), "test")
    size = kafka_settings.max_message_bytes
    place = producer.send_raw(ERASURES.name, b"k", bytes(size - 200))()
    assert place.topic == ERASURES.name
    with pytest.raises(InvalidEvent):
        producer.send_raw(ERASURES.name, b"k", bytes(size))
    producer.flush()
    producer.close()


def test_a_record_that_its_topic_does_not_take_goes_to_dead_letters_alone_and_its_neighbours_are_sent_once(broker: Broker, tmp_path: Path) -> None:
    create_topics(KafkaSettings(bootstrap_servers=broker.bootstrap_servers, max_message_bytes=100_000))
    settings, metrics = KafkaSettings(bootstrap_servers=broker.bootstrap_servers), Metrics()  # 4 MiB, which these topics do not take
    outbox = Outbox(tmp_path / "outbox.sqlite", lambda: Producer(settings, metrics, "test", linger_ms=200), metrics, "actor")

    def published(first: int, large: int) -> list[str]:
        for number in range(first, first + 40):
            comment = {"feedback_id": f"fb-{number}", "episode_id": f"ep-{number % 3}", "kind": "comment", "text": "small", "at": NOW}
            event = Feedback.model_validate(comment)
            assert outbox.put(FEEDBACK, event.model_copy(update={"text": "y" * 300_000}) if number == large else event)
        assert outbox.wait_until_empty(60)
        ids = [FEEDBACK.decode(record.value).feedback_id for record in read_to_end(settings, FEEDBACK, "test", metrics)]
        return [name for name in ids if int(name.removeprefix("fb-")) >= first]

    try:
        assert set(published(0, large=20)) == {f"fb-{number}" for number in range(40) if number != 20}
        assert sorted(published(100, large=120)) == sorted(f"fb-{number}" for number in range(100, 140) if number != 120)  # it knows the limit now
    finally:
        outbox.close()
    letters = [DEAD_LETTERS.decode(record.value) for record in read_to_end(settings, DEAD_LETTERS, "test", metrics)]
    assert [(letter.reason, letter.record_key) for letter in letters] == [("too_large", "ep-2"), ("too_large", "ep-0")]
    assert "max.message.bytes = 100000" in letters[1].message
    assert topic_differences(settings)[FEEDBACK.name]


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_what_any_producer_or_the_topic_compressed_is_read_by_both_clients(kafka_settings: KafkaSettings, codec: str) -> None:
    """Batches of two megabytes, since one that does not shrink is sent plain."""
    values = [Feedback(feedback_id=new_id("fb"), episode_id=f"ep-{n}", kind="comment", text=f"{codec} " * 900, at=NOW).encode() for n in range(300)]
    with_codec = kafka.KafkaProducer(**kafka_settings.client_options(), compression_type=codec, linger_ms=200, batch_size=2 << 20)
    ends = end_offsets(kafka_settings, FEEDBACK, Metrics())
    sent = [with_codec.send(FEEDBACK.name, value=value, partition=1) for value in values]
    with_codec.close()
    assert sent[0].get().serialized_value_size > 1000
    end = end_offsets(kafka_settings, FEEDBACK, Metrics())[1]
    assert [r.value for r in read_between(kafka_settings, FEEDBACK, 1, ends[1], end, "test", Metrics())] == values

    async def read_by_faust() -> list[bytes]:
        reader = aiokafka.AIOKafkaConsumer(bootstrap_servers=kafka_settings.servers)
        await reader.start()
        try:
            where = aiokafka.TopicPartition(FEEDBACK.name, 1)
            reader.assign([where])
            reader.seek(where, ends[1])
            return [(await reader.getone()).value for _ in values]
        finally:
            await reader.stop()

    assert asyncio.run(read_by_faust()) == values
