"""The log's contract: what every part may rely on, held by the simulated Kafka and by a real one alike."""

import random
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import kafka
import pytest

from streams.core.errors import InvalidEvent
from streams.core.events import DeadLetter, Erasure, Feedback, FeedbackKind, new_id, person_of
from streams.core.metrics import Metrics
from streams.core.topics import DEAD_LETTERS, EPISODES, ERASURES, FEEDBACK, Topic
from streams.kafka import Consumer, KafkaSettings, Producer, Record, committed_offsets, end_offsets, read_between, read_to_end
from streams.kafka.partitioning import partition_of
from streams.kafka.topic_admin import admin_client
from tests.support.simulated_clients import at, install
from tests.support.simulated_log import SimulatedLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Log:
    """Tidemill's own clients on what is below them: a running Kafka, or the simulated one."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._open: list[Any] = []

    def producer(self) -> Producer:
        self._open.append(Producer(self.settings, Metrics(), "contract"))
        return self._open[-1]

    def consumer(self, topics: Iterable[Topic[Any]], group: str | None = None, start: Any = "earliest") -> Consumer:
        self._open.append(Consumer(self.settings, list(topics), "contract", Metrics(), group=group, start=start))
        return self._open[-1]

    def delete_before(self, topic: Topic[Any], partition: int, offset: int) -> None:
        admin = admin_client(self.settings)
        admin.delete_records({kafka.TopicPartition(topic.name, partition): offset})
        admin.close()

    def close(self) -> None:
        for each in self._open:
            each.close()


@pytest.fixture(params=["simulated", "uneven", "kafka"])
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    if request.param == "kafka":
        made = Log(request.getfixturevalue("kafka_settings"))
    else:
        made = Log(at("contract"))
        install(monkeypatch, SimulatedLog(chance=random.Random(request.node.name) if request.param == "uneven" else None))
    yield made
    made.close()


def thumb(episode_id: str) -> Feedback:
    return Feedback(feedback_id=new_id("fb"), episode_id=episode_id, kind=FeedbackKind.THUMB, thumb="up", at=NOW)


def read(consumer: Any, wanted: Callable[[Record], bool], count: int) -> list[Record]:
    found: list[Record] = []
    for _ in range(120):
        records = consumer.poll(0.5)
        consumer.take_assignment()
        found += [record for record in records if wanted(record)]
        if len(found) >= count:
            break
    return found


def test_what_is_acknowledged_is_read_back_byte_for_byte(log: Log) -> None:
    value = b"\x00\xff not json " + uuid.uuid4().bytes
    place = log.producer().send_raw(FEEDBACK.name, b"key", value)()
    (record,) = read(log.consumer([FEEDBACK]), lambda r: r.value == value, 1)
    assert (record.topic, record.partition, record.offset, record.key) == (place.topic, place.partition, place.offset, b"key")
    assert abs(record.timestamp_ms / 1000 - datetime.now(UTC).timestamp()) < 60


def test_events_of_one_key_keep_their_order(log: Log) -> None:
    producer, episodes = log.producer(), [new_id("ep") for _ in range(5)]
    sent = [thumb(episode) for _ in range(40) for episode in episodes]
    waits = [producer.send(FEEDBACK, event) for event in sent]
    producer.flush()
    places = [wait() for wait in waits]
    records = read(log.consumer([FEEDBACK]), lambda r: r.key is not None and r.key.decode() in episodes, len(sent))
    for episode in episodes:
        got = [FEEDBACK.decode(r.value).feedback_id for r in records if r.key == episode.encode()]
        assert got == [event.feedback_id for event in sent if event.episode_id == episode]
        assert len({place.partition for place, event in zip(places, sent, strict=True) if event.episode_id == episode}) == 1


def test_too_large_an_event_is_refused_where_it_is_made_and_the_next_one_goes_through(log: Log) -> None:
    producer = log.producer()
    with pytest.raises(InvalidEvent, match=r"kafka\.max_message_bytes = 4194304") as refused:
        producer.send_raw(FEEDBACK.name, b"k", b"x" * (5 << 20))
    assert refused.value.reason == "too_large"
    producer.publish(FEEDBACK, thumb("after"))
    producer.flush()


def test_nearly_too_large_goes_through_whole(log: Log) -> None:
    value = uuid.uuid4().bytes + bytes(4_190_000)
    log.producer().send_raw(FEEDBACK.name, b"large", value)()
    (record,) = read(log.consumer([FEEDBACK]), lambda r: r.value == value, 1)
    assert record.key == b"large"


def test_a_group_goes_on_after_what_it_committed(log: Log) -> None:
    producer, group, key = log.producer(), new_id("group"), person_of(new_id("user"))
    events = [Erasure(person=key, requested_by=str(number), at=NOW) for number in range(6)]
    for event in events:
        producer.send(ERASURES, event)
    producer.flush()
    first = log.consumer([ERASURES], group)
    got = read(first, lambda r: r.key == key.encode(), 6)
    assert [ERASURES.decode(r.value) for r in got] == events
    assert first.committed([(ERASURES.name, 0)]) == {(ERASURES.name, 0): 0}
    assert first.commit({(ERASURES.name, 0): got[3].offset}) is True
    assert first.committed([(ERASURES.name, 0)]) == {(ERASURES.name, 0): got[3].offset}
    first.close()
    second = log.consumer([ERASURES], group)
    again = read(second, lambda r: r.key == key.encode(), 3)
    assert [r.offset for r in again] == [r.offset for r in got[3:]]
    assert second.commit() is True


def test_without_a_commit_everything_is_read_again(log: Log) -> None:
    producer, group, key = log.producer(), new_id("group"), person_of(new_id("user"))
    producer.publish(ERASURES, Erasure(person=key, requested_by="x", at=NOW))
    for _ in range(2):
        consumer = log.consumer([ERASURES], group)
        assert len(read(consumer, lambda r: r.key == key.encode(), 1)) == 1
        consumer.close()


def test_a_consumer_without_a_group_reads_all_from_the_beginning_and_goes_where_it_is_told(log: Log) -> None:
    producer, topic = log.producer(), new_id("topic")
    letter = DeadLetter(source_topic=topic, source_partition=0, source_offset=0, reason="x", message="", record_base64="", part="x", at=NOW)
    places = [producer.publish(DEAD_LETTERS, letter) for _ in range(5)]
    consumer = log.consumer([DEAD_LETTERS])
    assert [r.offset for r in read(consumer, lambda r: r.key == topic.encode(), 5)] == [place.offset for place in places]
    assert consumer.positions()[DEAD_LETTERS.name, 0] == places[-1].offset + 1
    assert consumer.measure_lag() == 0
    assert consumer.behind([(DEAD_LETTERS.name, 0)]) == set()
    consumer.seek({(DEAD_LETTERS.name, 0): places[3].offset})
    assert consumer.behind([(DEAD_LETTERS.name, 0)]) == {(DEAD_LETTERS.name, 0)}
    assert [r.offset for r in read(consumer, lambda r: r.key == topic.encode(), 2)] == [place.offset for place in places[3:]]
    assert consumer.bounds([(DEAD_LETTERS.name, 0)]) == {(DEAD_LETTERS.name, 0): (0, places[-1].offset + 1)}
    with pytest.raises(ValueError, match="group"):
        consumer.commit()


def test_a_poll_takes_no_more_than_asked_for_and_loses_none(log: Log) -> None:
    producer, key = log.producer(), person_of(new_id("user"))
    for number in range(30):
        producer.send(ERASURES, Erasure(person=key, requested_by=str(number), at=NOW))
    producer.flush()
    consumer = log.consumer([ERASURES])
    got: list[str] = []
    largest = 0
    for _ in range(100):
        records = consumer.poll(0.5, max_records=7)
        largest = max(largest, len(records))
        got += [ERASURES.decode(record.value).requested_by for record in records if record.key == key.encode()]
        if len(got) >= 30:
            break
    assert largest == 7
    assert got == [str(number) for number in range(30)]


def test_a_span_of_one_partition_is_read_and_nothing_beside_it(log: Log) -> None:
    places = [log.producer().publish(FEEDBACK, thumb(new_id("ep"))) for _ in range(12)]
    partition = places[0].partition
    end = end_offsets(log.settings, FEEDBACK, Metrics())[partition]
    read_back = read_between(log.settings, FEEDBACK, partition, places[0].offset, end - 1, "contract", Metrics())
    assert [(r.partition, r.offset) for r in read_back] == [(partition, offset) for offset in range(places[0].offset, end - 1)]


def test_committed_offsets_are_seen_from_outside(log: Log) -> None:
    group = new_id("group")
    assert committed_offsets(log.settings, group) == {}
    log.producer().publish(ERASURES, Erasure.of("x", requested_by="x", at=NOW))
    consumer = log.consumer([ERASURES], group)
    read(consumer, lambda _: True, 1)
    consumer.commit()
    assert committed_offsets(log.settings, group) == consumer.positions()


def test_a_key_lies_where_kafkas_own_partitioner_puts_it(log: Log) -> None:
    for key in (b"", b"a", b"ep-1", b"21", "größe".encode(), uuid.uuid4().bytes):
        assert log.producer().send_raw(FEEDBACK.name, key, b"x")().partition == partition_of(key, log.settings.partitions)


def test_an_offset_that_was_deleted_moves_to_the_first_that_exists(log: Log) -> None:
    places = [log.producer().publish(FEEDBACK, thumb("deleted")) for _ in range(5)]
    partition = places[0].partition
    reader = log.consumer([FEEDBACK])
    reader.seek({(FEEDBACK.name, partition): places[0].offset})
    log.delete_before(FEEDBACK, partition, places[3].offset)
    found = read(reader, lambda r: r.partition == partition, 2)  # it stood before what is deleted
    assert [r.offset for r in found] == [place.offset for place in places[3:]]
    reader.seek({(FEEDBACK.name, partition): places[1].offset})
    assert reader.positions()[FEEDBACK.name, partition] == places[3].offset
    assert reader.bounds([(FEEDBACK.name, partition)]) == {(FEEDBACK.name, partition): (places[3].offset, places[-1].offset + 1)}


def test_a_reader_of_what_is_new_sees_nothing_of_before(log: Log) -> None:
    log.producer().publish(FEEDBACK, thumb("before"))
    reader = log.consumer([FEEDBACK], new_id("group"), start="latest")
    while reader.take_assignment() is None:
        reader.poll(0.5)
    reader.positions()
    after = log.producer().publish(FEEDBACK, thumb("after"))
    assert [r.offset for r in read(reader, lambda r: True, 1)] == [after.offset]


def test_members_share_the_partitions_and_each_rebalance_is_told(log: Log) -> None:
    group, producer = new_id("group"), log.producer()
    first = log.consumer([EPISODES, FEEDBACK], group)
    owned: dict[int, frozenset[tuple[str, int]]] = {}
    everything = {(topic.name, number) for topic in (EPISODES, FEEDBACK) for number in range(log.settings.partitions)}
    polled_until(lambda: owned.get(0) == everything, [first], owned)
    second = log.consumer([EPISODES, FEEDBACK], group)
    polled_until(lambda: len(owned) == 2 and all(owned.values()) and owned[0] | owned[1] == everything, [first, second], owned)
    assert not owned[0] & owned[1]
    for mine in owned.values():
        assert {number for topic, number in mine if topic == EPISODES.name} in ({0, 1}, {2, 3})
        assert mine == {(topic.name, number) for topic in (EPISODES, FEEDBACK) for _, number in mine}, "the same partitions of both topics"
    polled_until(lambda: first.commit(dict.fromkeys(owned[0], 0)), [first, second], owned)  # refused until the last round of the rebalance is over
    second.close()
    polled_until(lambda: owned[0] == everything, [first], owned)
    producer.publish(FEEDBACK, thumb("shared"))


def polled_until(reached: Callable[[], bool], consumers: list[Consumer], owned: dict[int, frozenset[tuple[str, int]]]) -> None:
    """Poll the consumers in turn. ``owned`` has what each was last told that it owns."""
    for _ in range(200):
        for number, consumer in enumerate(consumers):
            consumer.poll(0.2)
            if (told := consumer.take_assignment()) is not None:
                owned[number] = told.partitions
        if reached():
            return
    raise AssertionError(f"the partitions went to {owned}")


def test_reading_to_the_end_ends_although_somebody_goes_on_writing(log: Log) -> None:
    producer, key = log.producer(), person_of(new_id("user"))
    for number in range(5):
        producer.publish(ERASURES, Erasure(person=key, requested_by=str(number), at=NOW))
    found = []
    for record in read_to_end(log.settings, ERASURES, "contract", Metrics()):
        if record.key == key.encode():
            found.append(ERASURES.decode(record.value).requested_by)
            producer.publish(ERASURES, Erasure(person=key, requested_by="later", at=NOW))
    assert found == ["0", "1", "2", "3", "4"]
