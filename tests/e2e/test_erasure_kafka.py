"""A person is forgotten by the whole ring on a real Kafka: join, lake, reward model and learner, and later versions know nothing of them."""

import signal
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.operate.erasure_certificate import ask, certificate
from learner.ring.learner_inputs import LogFeed
from learner.settings import LearnerSettings
from reward.evaluation.version_replay import Replay, versions_of
from reward.features.featurizer import Featurizer
from reward.fit.reward_model import RewardModel
from reward.updater.refitter import Refitter
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import Episode, Feedback, FeedbackKind, Label, Message, RewardModelVersion
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import EPISODES, ERASED, FEEDBACK, LABELS, REWARD_MODELS
from streams.erasure.forgotten_people import Forgotten
from streams.join import join_loop as joiner
from streams.join.join_settings import JoinSettings
from streams.join.ledger import read_ledger
from streams.kafka import KafkaSettings, Producer, create_topics, read_to_end
from streams.lake import lake_loop as lake
from streams.lake.lake_loop import LakeSettings
from streams.lake.parquet_lake import Lake
from tests.integration.test_updater import SETTINGS, Worker
from tests.support.running import running, wait_for

HER, HER_WORDS = "ann-the-forgotten", "my cat is called Minka"
OTHERS = 8


@pytest.fixture
def kafka(empty_kafka: KafkaSettings) -> KafkaSettings:
    settings = empty_kafka.model_copy(update={"session_timeout_s": 6.0, "partitions": 2})
    create_topics(settings)
    return settings


def publish(kafka: KafkaSettings) -> None:
    """Ten people each ask once, and thumb the answer they got and the one after it; she asks, thumbs, and comments on others' answers too."""
    now, producer = datetime.now(UTC) - timedelta(minutes=1), Producer(kafka, Metrics(), "test")
    people = [HER, *(f"person-{number}" for number in range(OTHERS + 1))]
    for number, person in enumerate(people):
        words = HER_WORDS if person == HER else f"tell me about tea {number}"
        answer = "you would like tea" if number % 2 else "tea is a plant"
        asked = (Message(role="user", content=words),)
        producer.send(EPISODES, Episode(episode_id=f"ep-{number}", user_id=person, messages=asked, answer=answer, started_at=now, ended_at=now))
    for number in range(len(people)):
        for voter in {people[number], people[(number + 1) % len(people)], HER}:
            up = (number % 2 == 1) != (voter == HER)
            producer.send(FEEDBACK, Feedback(feedback_id=f"fb-{number}-{people.index(voter)}", episode_id=f"ep-{number}", user_id=voter,
                                             kind=FeedbackKind.THUMB, thumb="up" if up else "down", at=now + timedelta(seconds=1)))  # fmt: skip
    note = Feedback(feedback_id="fb-note", episode_id="ep-3", user_id=HER, kind=FeedbackKind.CORRECTION, text=f"say that {HER_WORDS}", at=now)
    producer.send(FEEDBACK, note)
    producer.send_raw(FEEDBACK.name, b"ep-4", b'{"user_id": "' + HER.encode() + b'", "text": "' + HER_WORDS.encode())
    producer.flush()
    producer.close()


def labels(kafka: KafkaSettings) -> dict[str, Label]:
    """By episode, as they stand now."""
    found: dict[str, Label] = {}
    for record in read_to_end(kafka, LABELS, "test", Metrics()):
        if record.value is None:
            found.pop((record.key or b"").decode(), None)
        else:
            found[(record.key or b"").decode()] = LABELS.decode(record.value)
    return found


def versions(kafka: KafkaSettings) -> list[RewardModelVersion]:
    return [REWARD_MODELS.decode(record.value) for record in read_to_end(kafka, REWARD_MODELS, "test", Metrics())]


def traces(folder: Path) -> list[str]:
    """Files that hold her name or her words; Parquet is read as a reader would."""
    needles = (HER.encode(), HER_WORDS.encode())
    found = [str(path) for path in folder.rglob("*") if path.is_file() and any(needle in path.read_bytes() for needle in needles)]
    kept = Lake(str(folder / "lake"))
    for topic in (EPISODES, FEEDBACK, LABELS):
        found += [f"{topic.short_name}/{r.offset}" for r in kept.records(topic) if any(needle in (r.value or b"") for needle in needles)]
    return found


def test_a_person_is_forgotten_everywhere_and_later_versions_are_those_of_a_ring_that_never_knew_them(
    kafka: KafkaSettings, tiny_base: Path, tmp_path: Path
) -> None:
    ring = tmp_path / "ring"
    store, kept, evidence = ArtifactStore(str(ring / "artifacts")), LakeSettings(uri=str(ring / "lake"), flush_s=0.5), JoinSettings()
    context = lambda name: PartContext(kafka, store, "default", tiny_base, ring / name)  # noqa: E731
    learner = context("learner")
    learner.state.mkdir(parents=True)
    producer = Producer(kafka, Metrics(), "learner")
    worker = Worker(kafka, tiny_base, ring)
    featurizer = Featurizer(tiny_base / "dense", SETTINGS)
    try:
        with ExitStack() as parts:
            parts.enter_context(running(lambda s: joiner.run(evidence, s), context("join")))
            parts.enter_context(running(lambda s: lake.run(kept, s, evidence), context("lake")))
            publish(kafka)
            wait_for(lambda: bool(versions(kafka)) and versions(kafka)[-1].labels == OTHERS + 2)
            knew = versions(kafka)[-1]
            feed = LogFeed(LearnerSettings(prompts_needed=1), learner, producer, featurizer.fingerprint)
            wait_for(lambda: feed.read(0) or feed.is_ready)
            feed.save()
            wait_for(lambda: len(versions_of(Lake(kept.uri or ""), "default")) == len(versions(kafka)))
            assert traces(ring / "lake")
            assert HER_WORDS in (learner.state / "prompts.json").read_text()
            would_be = Replay(Lake(kept.uri or ""), "default", SETTINGS, featurizer, Forgotten.as_if_absent(HER), evidence).rebuild(knew, store)
            assert not would_be.equal
            assert would_be.most_moved > 0

            erasure = ask(kafka, HER, "operator")
            wait_for(lambda: feed.read(0) or certificate(kafka, "default", erasure).complete)
            found = certificate(kafka, "default", erasure)
            assert found.removed["lake (files)"]["episodes"] == 1
            assert found.removed["lake (files)"]["feedback"] == OTHERS + 4
            assert found.removed["learner (prompts)"] == {"prompts": 1}
            assert sum(kinds["feedback"] for place, kinds in found.removed.items() if place.startswith("join")) >= OTHERS + 2
            assert f"reward model default/{knew.version}" in found.learned
            feed.close()

            new = versions(kafka)[-1]
            assert new.version > knew.version
            assert new.labels == OTHERS + 1
            stand = labels(kafka)
            assert "ep-0" not in stand
            assert len(stand) == OTHERS + 1
            assert all(vote.user_id != HER for label in stand.values() for vote in label.votes)
            never_told = Refitter(SETTINGS, featurizer)
            never_told.absorb(never_told.prepare(list(stand.values())))
            published = RewardModel.load(store.fetch(new.artifact, tmp_path / "new"))
            assert published.checksum() == never_told.fitted().checksum() == would_be.rebuilt
            books = read_ledger(kafka)
            assert books.balanced, str(books)
            assert books.rows[0].erased == 1

            late = Feedback(feedback_id="fb-late", episode_id="ep-5", user_id=HER, kind=FeedbackKind.THUMB, thumb="down", at=erasure.at)
            producer.publish(FEEDBACK, late)  # out of an outbox that could not send for a while
            producer.publish(FEEDBACK, late.model_copy(update={"feedback_id": "fb-other", "user_id": "person-1", "at": datetime.now(UTC)}))
            wait_for(lambda: any(vote.feedback_id == "fb-other" for vote in labels(kafka)["ep-5"].votes))
        assert traces(ring) == []
    finally:
        worker.stop(signal.SIGKILL)
        producer.close()

    told = len(list(read_to_end(kafka, ERASED, "test", Metrics())))
    with (
        running(lambda s: joiner.run(evidence, s), context("join-that-lost-its-state")),
        running(lambda s: lake.run(kept, s, evidence), context("lake")),
    ):
        wait_for(lambda: len(list(read_to_end(kafka, ERASED, "test", Metrics()))) >= told + kafka.partitions)
        time.sleep(1)
    assert "ep-0" not in labels(kafka)
    assert all(vote.user_id != HER for label in labels(kafka).values() for vote in label.votes)
    assert traces(ring) == []
