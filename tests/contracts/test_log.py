"""The log's contract: what every part may rely on, held by the fake and by a real Kafka alike."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from streams.core.errors import InvalidEvent
from streams.core.events import DeadLetter, Erasure, Feedback, FeedbackKind, new_id, person_of
from streams.core.metrics import Metrics
from streams.core.topics import DEAD_LETTERS, ERASURES, FEEDBACK, Topic
from streams.kafka import Consumer, KafkaSettings, Producer, Record, committed_offsets, end_offsets, read_between
from tests.support.fakes import FakeLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class RealLog:
    """A running Kafka behind the fake's doors."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._open: list[Any] = []

    def publisher(self) -> Producer:
        self._open.append(Producer(self._settings, Metrics(), "contract"))
        return self._open[-1]

    def consumer(self, topics: Iterable[Topic[Any]], group: str | None = None) -> Consumer:
        self._open.append(Consumer(self._settings, list(topics), "contract", Metrics(), group=group))
        return self._open[-1]

    def close(self) -> None:
        for each in self._open:
            each.close()


@pytest.fixture(params=["fake", "kafka"])
def log(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "fake":
        yield FakeLog()
        return
    real = RealLog(request.getfixturevalue("kafka_settings"))
    yield real
    real.close()


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


def test_what_is_acknowledged_is_read_back_byte_for_byte(log: Any) -> None:
    value = b"\x00\xff not json " + uuid.uuid4().bytes
    place = log.publisher().send_raw(FEEDBACK.name, b"key", value)()
    (record,) = read(log.consumer([FEEDBACK]), lambda r: r.value == value, 1)
    assert (record.topic, record.partition, record.offset, record.key) == (place.topic, place.partition, place.offset, b"key")
    assert abs(record.timestamp_ms / 1000 - datetime.now(UTC).timestamp()) < 60


def test_events_of_one_key_keep_their_order(log: Any) -> None:
    publisher, episodes = log.publisher(), [new_id("ep") for _ in range(5)]
    sent = [thumb(episode) for _ in range(40) for episode in episodes]
    waits = [publisher.send(FEEDBACK, event) for event in sent]
    publisher.flush()
    places = [wait() for wait in waits]
    records = read(log.consumer([FEEDBACK]), lambda r: r.key is not None and r.key.decode() in episodes, len(sent))
    for episode in episodes:
        got = [FEEDBACK.decode(r.value).feedback_id for r in records if r.key == episode.encode()]
        assert got == [event.feedback_id for event in sent if event.episode_id == episode]
        assert len({place.partition for place, event in zip(places, sent, strict=True) if event.episode_id == episode}) == 1


def test_too_large_an_event_is_refused_where_it_is_made_and_the_next_one_goes_through(log: Any) -> None:
    publisher = log.publisher()
    with pytest.raises(InvalidEvent, match=r"kafka\.max_message_bytes = 4194304") as refused:
        publisher.send_raw(FEEDBACK.name, b"k", b"x" * (5 << 20))
    assert refused.value.reason == "too_large"
    publisher.publish(FEEDBACK, thumb("after"))
    publisher.flush()


def test_nearly_too_large_goes_through_whole(log: Any) -> None:
    value = uuid.uuid4().bytes + bytes(4_190_000)
    log.publisher().send_raw(FEEDBACK.name, b"large", value)()
    (record,) = read(log.consumer([FEEDBACK]), lambda r: r.value == value, 1)
    assert record.key == b"large"


def test_a_group_goes_on_after_what_it_committed(log: Any) -> None:
    publisher, group, key = log.publisher(), new_id("group"), person_of(new_id("user"))
    events = [Erasure(person=key, requested_by=str(number), at=NOW) for number in range(6)]
    for event in events:
        publisher.send(ERASURES, event)
    publisher.flush()
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


def test_without_a_commit_everything_is_read_again(log: Any) -> None:
    publisher, group, key = log.publisher(), new_id("group"), person_of(new_id("user"))
    publisher.publish(ERASURES, Erasure(person=key, requested_by="x", at=NOW))
    for _ in range(2):
        consumer = log.consumer([ERASURES], group)
        assert len(read(consumer, lambda r: r.key == key.encode(), 1)) == 1
        consumer.close()


def test_a_consumer_without_a_group_reads_all_from_the_beginning_and_goes_where_it_is_told(log: Any) -> None:
    publisher, topic = log.publisher(), new_id("topic")
    letter = DeadLetter(source_topic=topic, source_partition=0, source_offset=0, reason="x", message="", record_base64="", part="x", at=NOW)
    places = [publisher.publish(DEAD_LETTERS, letter) for _ in range(5)]
    consumer = log.consumer([DEAD_LETTERS])
    assert [r.offset for r in read(consumer, lambda r: r.key == topic.encode(), 5)] == [place.offset for place in places]
    assert consumer.positions()[DEAD_LETTERS.name, 0] == places[-1].offset + 1
    assert consumer.measure_lag() == 0
    assert not consumer.is_behind(DEAD_LETTERS.name, 0)
    consumer.seek({(DEAD_LETTERS.name, 0): places[3].offset})
    assert [r.offset for r in read(consumer, lambda r: r.key == topic.encode(), 2)] == [place.offset for place in places[3:]]
    assert consumer.bounds([(DEAD_LETTERS.name, 0)]) == {(DEAD_LETTERS.name, 0): (0, places[-1].offset + 1)}
    with pytest.raises(ValueError, match="group"):
        consumer.commit()


def test_a_poll_takes_no_more_than_asked_for_and_loses_none(log: Any) -> None:
    publisher, key = log.publisher(), person_of(new_id("user"))
    for number in range(30):
        publisher.send(ERASURES, Erasure(person=key, requested_by=str(number), at=NOW))
    publisher.flush()
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


def test_a_span_of_one_partition_is_read_and_nothing_beside_it(kafka_settings: KafkaSettings) -> None:
    log = RealLog(kafka_settings)
    places = [log.publisher().publish(FEEDBACK, thumb(new_id("ep"))) for _ in range(12)]
    partition = places[0].partition
    end = end_offsets(kafka_settings, FEEDBACK, Metrics())[partition]
    read_back = read_between(kafka_settings, FEEDBACK, partition, places[0].offset, end - 1, "contract", Metrics())
    assert [(r.partition, r.offset) for r in read_back] == [(partition, offset) for offset in range(places[0].offset, end - 1)]
    log.close()


def test_committed_offsets_are_seen_from_outside(kafka_settings: KafkaSettings) -> None:
    group = new_id("group")
    assert committed_offsets(kafka_settings, group) == {}
    log = RealLog(kafka_settings)
    log.publisher().publish(ERASURES, Erasure.of("x", requested_by="x", at=NOW))
    consumer = log.consumer([ERASURES], group)
    read(consumer, lambda _: True, 1)
    consumer.commit()
    assert committed_offsets(kafka_settings, group) == consumer.positions()
    log.close()
