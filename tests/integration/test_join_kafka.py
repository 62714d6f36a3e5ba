"""The join on a real Kafka: labels come out, nothing is lost by a kill, bad records are set aside."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import DeadLetter, Episode, Feedback, FeedbackKind, Label, Message, new_id
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import DEAD_LETTERS, EPISODES, FEEDBACK, LABELS
from streams.join import join_loop as joiner
from streams.join.join_session import GROUP, JoinSession
from streams.join.join_settings import JoinSettings
from streams.kafka import KafkaSettings, Producer, committed_offsets, end_offsets, read_to_end
from tests.support.running import running, wait_for


@pytest.fixture
def context(kafka_settings: KafkaSettings, tmp_path: Path) -> PartContext:
    return PartContext(kafka_settings, ArtifactStore(str(tmp_path / "artifacts")), "default", tmp_path, tmp_path / "state")


@pytest.fixture
def producer(kafka_settings: KafkaSettings) -> Iterator[Producer]:
    made = Producer(kafka_settings, Metrics(), "test")
    yield made
    made.close()


def joining(context: PartContext, settings: JoinSettings | None = None) -> AbstractContextManager[None]:
    """The join on a thread of its own, stopped at the end."""
    return running(partial(joiner.run, settings or JoinSettings()), context)


def episode(episode_id: str | None = None) -> Episode:
    now = datetime.now(UTC)
    return Episode(
        episode_id=episode_id or new_id("ep"), messages=(Message(role="user", content="hello"),), answer="hi", started_at=now, ended_at=now
    )


def thumb(episode_id: str, up: bool = True, seconds: float = 0, user_id: str = "ann") -> Feedback:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return Feedback(feedback_id=new_id("fb"), episode_id=episode_id, user_id=user_id, kind=FeedbackKind.THUMB, thumb="up" if up else "down", at=at)


def newest_labels(settings: KafkaSettings) -> dict[str, Label]:
    return {label.episode_id: label for record in read_to_end(settings, LABELS, "test", Metrics()) for label in [LABELS.decode(record.value)]}


def letters(settings: KafkaSettings) -> list[DeadLetter]:
    return [DEAD_LETTERS.decode(record.value) for record in read_to_end(settings, DEAD_LETTERS, "test", Metrics())]


def test_feedback_becomes_a_label_and_a_changed_thumb_a_newer_one(context: PartContext, producer: Producer) -> None:
    ep = episode()
    producer.publish(EPISODES, ep)
    producer.publish(FEEDBACK, thumb(ep.episode_id, up=True))
    with joining(context):
        wait_for(lambda: ep.episode_id in newest_labels(context.kafka))
        assert newest_labels(context.kafka)[ep.episode_id].verdict == 1
        producer.publish(FEEDBACK, thumb(ep.episode_id, up=False, seconds=1))
        wait_for(lambda: newest_labels(context.kafka)[ep.episode_id].verdict == 0)
    assert context.metrics.value("tidemill_feedback_joined_total", kind="thumb") >= 2
    assert context.metrics.value("tidemill_thumb_to_label_seconds_count") >= 2
    ends = end_offsets(context.kafka, FEEDBACK, Metrics())
    committed = committed_offsets(context.kafka, GROUP)
    assert {p: committed.get((FEEDBACK.name, p), 0) for p in ends} == ends


def test_a_bad_record_is_set_aside_and_the_partition_goes_on(context: PartContext, producer: Producer) -> None:
    ep = episode()
    producer.publish(EPISODES, ep)
    bad = [
        b'{"schema_version": 1, "feedback_id": "x", "episode_id": "e", "kind": "thumb", "thumb": 7, "at": "2026-01-01T00:00:00Z"}',
        b'{"schema_version": 99}',
        b"\xff not json",
        b"",
    ]
    places = [producer.send_raw(FEEDBACK.name, ep.episode_id.encode(), raw)() for raw in bad]
    producer.publish(FEEDBACK, thumb(ep.episode_id))
    with joining(context):
        wait_for(lambda: ep.episode_id in newest_labels(context.kafka))
    found = {(each.source_partition, each.source_offset): each.reason for each in letters(context.kafka) if each.source_topic == FEEDBACK.name}
    assert [found[place.partition, place.offset] for place in places] == ["invalid", "unknown_version", "not_json", "empty"]


def test_feedback_without_an_episode_expires_into_a_dead_letter(context: PartContext, producer: Producer) -> None:
    lost = thumb(new_id("ep"))
    producer.publish(FEEDBACK, lost)
    with joining(context, JoinSettings(window_days=1e-5, expire_every_s=0.2)):
        wait_for(lambda: any(each.feedback_id == lost.feedback_id and each.reason == "expired" for each in letters(context.kafka)))


def test_a_restart_goes_on_where_it_stopped_and_remembers(context: PartContext, producer: Producer) -> None:
    ep, early = episode(), thumb(new_id("ep"))
    producer.publish(EPISODES, ep)
    producer.publish(FEEDBACK, thumb(ep.episode_id, user_id="ann"))
    producer.publish(FEEDBACK, early)
    with joining(context):
        wait_for(lambda: ep.episode_id in newest_labels(context.kafka))
    before = sum(end_offsets(context.kafka, LABELS, Metrics()).values())
    again = PartContext(context.kafka, context.artifacts, "default", context.base, context.state)
    with joining(again):
        producer.publish(FEEDBACK, thumb(ep.episode_id, up=False, user_id="bob"))
        producer.publish(EPISODES, episode(early.episode_id))
        wait_for(lambda: early.episode_id in newest_labels(context.kafka))
        wait_for(lambda: newest_labels(context.kafka)[ep.episode_id].verdict == 0.5)
    assert sum(end_offsets(context.kafka, LABELS, Metrics()).values()) == before + 2


def test_lost_state_is_folded_again_from_the_log(context: PartContext, producer: Producer, tmp_path: Path) -> None:
    ep = episode()
    producer.publish(EPISODES, ep)
    producer.publish(FEEDBACK, thumb(ep.episode_id, user_id="ann"))
    with joining(context):
        wait_for(lambda: ep.episode_id in newest_labels(context.kafka))
    fresh = PartContext(context.kafka, context.artifacts, "default", context.base, tmp_path / "elsewhere")
    with joining(fresh):
        producer.publish(FEEDBACK, thumb(ep.episode_id, up=False, user_id="bob"))
        wait_for(lambda: newest_labels(context.kafka)[ep.episode_id].verdict == 0.5)


def test_a_restart_of_one_join_leaves_the_others_partitions_open(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    def session(name: str) -> JoinSession:
        context = PartContext(kafka_settings, ArtifactStore(str(tmp_path / "artifacts")), "default", tmp_path, tmp_path / name)
        return JoinSession(JoinSettings(), context)

    def turn_until(reached: Callable[[], bool], sessions: dict[str, JoinSession]) -> None:
        until = time.monotonic() + 120
        while not reached():
            assert time.monotonic() < until, [sorted(each.parts) for each in sessions.values()]
            for each in sessions.values():
                each.turn()

    sessions = {"stays": session("stays")}
    stays = sessions["stays"]
    turn_until(lambda: len(stays.parts) == 4, sessions)
    opened = dict(stays.parts)
    sessions["comes"] = session("comes")
    turn_until(lambda: [len(each.parts) for each in sessions.values()] == [2, 2], sessions)
    own = dict(stays.parts)
    assert all(own[number] is opened[number] for number in own), "they were never closed"
    for _ in range(2):
        sessions.pop("comes").close()
        turn_until(lambda: len(stays.parts) == 4, sessions)
        assert all(stays.parts[number] is part for number, part in own.items())
        sessions["comes"] = session("comes")
        turn_until(lambda: [len(each.parts) for each in sessions.values()] == [2, 2], sessions)
        assert stays.parts == own
    for each in sessions.values():
        each.close()
