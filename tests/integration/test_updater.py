"""The real Faust worker on a real Kafka: labels in, versions out; bad records aside; killed and recovered."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from reward.features.featurizer import Featurizer
from reward.fit.buffer_entry import BUFFER_LAYOUT
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from reward.updater.batch_steps import BatchSteps
from reward.updater.refitter import Refitter
from reward.updater.version_publisher import VersionPublisher
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import DeadLetter, Event, FeedbackKind, Label, Message, Outcome, RewardModelVersion, Vote
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import DEAD_LETTERS, LABELS, REWARD_MODELS, Topic
from streams.kafka import Consumer, KafkaSettings, Producer, Record, committed_offsets, create_topics, end_offsets, read_to_end
from tests.unit.actor.test_candidate_scoring import head, published
from tests.unit.reward.test_refitter import CountedLetters

SETTINGS = RewardSettings(min_labels=8, min_each_verdict=2, heads=4, folds=3, batch_within_s=0.1, publish_tolerance_se=10)
START = datetime(2026, 1, 1, tzinfo=UTC)
WAIT_S = 240.0
"""A worker imports torch, reads the backbone and joins a group: half a minute on an idle machine, minutes on a busy one."""
WORKER = """
import logging, signal, sys
from pathlib import Path
from reward.settings import RewardSettings
from reward.updater.faust_app import run
from streams.artifacts.artifact_store import ArtifactStore
from streams.kafka import KafkaSettings
from streams.core.part_context import PartContext

logging.basicConfig(level=logging.INFO)
logging.getLogger("kafka").setLevel(logging.CRITICAL)
exec(sys.argv.pop())
kafka, settings, base, state, store = sys.argv[1:]
context = PartContext(KafkaSettings.model_validate_json(kafka), ArtifactStore(store), "default", Path(base), Path(state))
signal.signal(signal.SIGTERM, lambda *_: context.stopping.set())
run(RewardSettings.model_validate_json(settings), context)
"""

FAILING = "from reward.updater.batch_steps import BatchSteps\nBatchSteps.prepare = lambda *_: 1 / 0"
SILENT = "from reward.updater.version_publisher import VersionPublisher\nVersionPublisher.refit_and_publish = lambda *_: None"


class Worker:
    """The updater in a process of its own."""

    def __init__(self, kafka: KafkaSettings, base: Path, folder: Path, fault: str = "") -> None:
        """``fault``: Python that breaks something in the process before it begins."""
        self.kafka, self.store = kafka, str(folder / "artifacts")
        self._log = (folder / f"worker-{uuid.uuid4().hex[:6]}.log").open("w")
        arguments = [kafka.model_dump_json(), SETTINGS.model_dump_json(), str(base), str(folder / "state"), self.store, fault]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-Pu", "-c", WORKER, *arguments], env=environment, stdout=self._log, stderr=self._log)

    def stop(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        code = self.process.wait(timeout=WAIT_S)
        self._log.close()
        return code


@pytest.fixture
def kafka(empty_kafka: KafkaSettings) -> KafkaSettings:
    settings = empty_kafka.model_copy(update={"session_timeout_s": 6.0})
    create_topics(settings)
    return settings


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """Workers of the test; whatever still runs at its end is killed."""
    running: list[Worker] = []
    yield running
    for worker in running:
        if worker.process.poll() is None:
            worker.stop(signal.SIGKILL)


def label(number: int, verdict: float | None, answer: str | None = None, minutes: float = 0.0) -> Label:
    at = START + timedelta(minutes=number + minutes)
    vote = Vote(feedback_id=f"fb-{number}-{minutes}", user_id="ada", kind=FeedbackKind.THUMB, value=verdict, at=at)
    words = answer if answer is not None else ("you would like tea" if number % 2 else "tea is a plant")
    return Label(
        episode_id=f"ep-{number}",
        policy="default",
        outcome=Outcome.COMPLETED,
        messages=(Message(role="user", content=f"Tell me about tea {number}"),),
        answer=words,
        verdict=verdict,
        votes=() if verdict is None else (vote,),
        superseded=() if verdict is not None else (vote.feedback_id,),
        episode_at=START,
        first_feedback_at=START,
        newest_feedback_at=at,
    )


def events_of(kafka: KafkaSettings, topic: Topic[Event]) -> list[Event]:
    return [topic.decode(record.value) for record in read_to_end(kafka, topic, "test", Metrics())]


def taken_in(kafka: KafkaSettings, features: Featurizer) -> dict[int, int]:
    """Where the updater's group stands, by partition."""
    group = f"tidemill-reward-default-{features.fingerprint[:12]}-{BUFFER_LAYOUT}"
    return {partition: end for (topic, partition), end in committed_offsets(kafka, group).items() if topic == LABELS.name}


def wait_for(found: Callable[[], bool], worker: Worker, within_s: float = WAIT_S) -> None:
    until = time.monotonic() + within_s
    while not found():
        assert worker.process.poll() is None, f"the worker died: {Path(worker._log.name).read_text()[-8000:]}"
        assert time.monotonic() < until, f"nothing came within {within_s} s: {Path(worker._log.name).read_text()[-8000:]}"
        time.sleep(0.2)


def test_labels_become_versions_bad_records_are_set_aside_and_a_kill_loses_nothing(
    kafka: KafkaSettings, tiny_base: Path, tmp_path: Path, workers: list[Worker]
) -> None:
    metrics = Metrics()
    producer = Producer(kafka, metrics, "test")
    versions: Callable[[], list[RewardModelVersion]] = lambda: events_of(kafka, REWARD_MODELS)  # type: ignore[arg-type, return-value]  # noqa: E731
    dead: Callable[[], list[DeadLetter]] = lambda: events_of(kafka, DEAD_LETTERS)  # type: ignore[arg-type, return-value]  # noqa: E731
    workers.append(first := Worker(kafka, tiny_base, tmp_path))

    producer.send_raw(LABELS.name, b"ep-bad", b'{"episode_id": ')
    for number in range(12):
        producer.send(LABELS, label(number, float(number % 2)))
    producer.flush()
    wait_for(lambda: bool(versions()) and versions()[-1].labels == 12, first)
    assert [d.reason for d in dead()] == ["not_json"]
    assert dead()[0].part == "reward"
    before = versions()[-1]
    assert before.offsets[LABELS.name] == {p: o for p, o in end_offsets(kafka, LABELS, metrics).items() if o}
    folder = ArtifactStore(first.store).fetch(before.artifact, tmp_path / "fetched")
    model = RewardModel.load(folder)
    featurizer = Featurizer(tiny_base / "dense", SETTINGS)
    assert model.features == before.backbone_fingerprint == featurizer.fingerprint
    scores = model.score(featurizer.features([(label(1, 1.0).messages, "you would like tea"), (label(1, 1.0).messages, "tea is a plant")]))
    assert scores.mean_N[0] > scores.mean_N[1]

    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    producer.send(LABELS, label(0, None, minutes=60))
    producer.send(LABELS, label(12, 0.0))
    producer.flush()
    workers.append(second := Worker(kafka, tiny_base, tmp_path))
    wait_for(lambda: versions()[-1].version > before.version and versions()[-1].labels == 12, second)  # 12 - 1 withdrawn + 1 new
    after = versions()[-1]
    assert [v.version for v in versions()] == sorted({v.version for v in versions()})
    assert after.offsets[LABELS.name] == {p: o for p, o in end_offsets(kafka, LABELS, metrics).items() if o}
    assert len(dead()) == 1 or {d.source_offset for d in dead()} == {dead()[0].source_offset}  # set aside once, or again by the batch read twice
    assert second.stop(signal.SIGTERM) == 0
    producer.close()

    # An erasure while nobody was there, and its tombstones are gone too: those labels simply are no more.
    kept = delete_oldest_label(kafka)
    read_at = tmp_path / "state" / "labels-read"
    os.utime(read_at, (0, 0))
    workers.append(third := Worker(kafka, tiny_base, tmp_path))
    wait_for(lambda: versions()[-1].version > after.version, third)
    assert versions()[-1].labels == len(kept)
    assert third.stop(signal.SIGTERM) == 0


def delete_oldest_label(settings: KafkaSettings) -> set[str]:
    """Makes the log begin one record later in a partition, as if compaction had taken a label; returns the episodes that still have a verdict."""
    records = list(read_to_end(settings, LABELS, "test", Metrics()))
    known = {record.key: record for record in records}  # the newest of each
    gone = next(
        record for record in records if record.key != b"ep-bad" and known[record.key] is record and LABELS.decode(record.value).verdict is not None
    )
    with closing(KafkaAdminClient(**settings.client_options())) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, LABELS.name, {"cleanup.policy": "compact,delete"})])
        admin.delete_records({TopicPartition(LABELS.name, gone.partition): gone.offset + 1})
    left = {record.key: record for record in read_to_end(settings, LABELS, "test", Metrics()) if record.key != b"ep-bad"}
    return {label.episode_id for record in left.values() if (label := LABELS.decode(record.value)).verdict is not None}


def test_a_batch_that_failed_is_read_again_and_what_was_read_and_not_published_becomes_a_version_at_the_next_start(
    kafka: KafkaSettings, tiny_base: Path, tmp_path: Path, workers: list[Worker]
) -> None:
    producer, features = Producer(kafka, Metrics(), "test"), Featurizer(tiny_base / "dense", SETTINGS)
    labels_of_versions: Callable[[], list[int]] = lambda: [v.labels for v in events_of(kafka, REWARD_MODELS)]  # type: ignore[attr-defined]  # noqa: E731
    for number in range(12):
        producer.send(LABELS, label(number, float(number % 2)))
    producer.flush()
    workers.append(failing := Worker(kafka, tiny_base, tmp_path, FAILING))
    assert failing.process.wait(timeout=WAIT_S) == 1
    assert "ZeroDivisionError" in Path(failing._log.name).read_text()

    workers.append(silent := Worker(kafka, tiny_base, tmp_path, SILENT))
    wait_for(lambda: sum(taken_in(kafka, features).values()) == 12, silent)
    assert silent.stop(signal.SIGTERM) == 0
    assert labels_of_versions() == []

    workers.append(last := Worker(kafka, tiny_base, tmp_path))
    wait_for(lambda: labels_of_versions() == [12], last)
    assert events_of(kafka, REWARD_MODELS)[0].offsets[LABELS.name] == taken_in(kafka, features)  # type: ignore[attr-defined]
    producer.close()


def test_what_was_taken_in_while_two_updaters_shared_the_labels_becomes_a_version_once_one_of_them_holds_all(
    kafka_settings: KafkaSettings, tiny_base: Path, tmp_path: Path
) -> None:
    """On a busy machine a rebalance deals the partitions in two turns: the first of them must not count as having published anything."""
    context = PartContext(kafka_settings, ArtifactStore(str(tmp_path / "artifacts")), "shared", tiny_base, tmp_path)
    producer = Producer(kafka_settings, Metrics(), "test")
    for number in range(12):
        producer.send(LABELS, label(number, float(number % 2)).model_copy(update={"policy": context.policy}))
    producer.flush()
    steps = BatchSteps(SETTINGS, context)
    with closing(Consumer(kafka_settings, [LABELS], "test", Metrics(), group=steps.name)) as consumer:
        records: list[Record] = []
        while len(records) < 12:
            records += consumer.poll(0.5)
            consumer.take_assignment()
        assert consumer.commit()
        stored = steps.absorb(batch := steps.prepare(records))
    versions: Callable[[], list[int]] = lambda: [v.labels for v in events_of(kafka_settings, REWARD_MODELS) if v.policy == context.policy]  # type: ignore[attr-defined]  # noqa: E731
    steps.finish(batch, holds_all_labels=False)
    steps.close()

    again = BatchSteps(SETTINGS, context)
    assert not again.recover([value for value in stored.values() if value], held=2)
    assert versions() == []
    assert again.recover([value for value in stored.values() if value], held=kafka_settings.partitions)
    assert versions() == [12]
    assert again.recover([value for value in stored.values() if value], held=kafka_settings.partitions)
    assert versions() == [12]  # once is enough
    again.close()
    producer.close()


def test_a_standby_that_takes_over_goes_on_from_what_the_other_published(kafka: KafkaSettings, tmp_path: Path) -> None:
    context = PartContext(kafka, ArtifactStore(str(tmp_path / "artifacts")), "default", tmp_path, tmp_path)
    producer = Producer(kafka, Metrics(), "test")
    standby = VersionPublisher(SETTINGS, context, producer, "f" * 64)
    assert standby.number == 0
    producer.publish(REWARD_MODELS, published(context.artifacts, tmp_path, head(), number=7))
    assert standby.catch_up()
    assert standby.number == 7
    model = standby.newest_model()
    assert model is not None
    assert model.checksum() == head().checksum()
    assert not standby.catch_up()
    producer.close()


def test_every_fit_tells_what_the_caps_moved_and_how_much_one_person_holds(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    context = PartContext(kafka_settings, ArtifactStore(str(tmp_path / "artifacts")), "capped", tmp_path, tmp_path)
    producer, refitter = Producer(kafka_settings, Metrics(), "test"), Refitter(SETTINGS, CountedLetters())
    versions = VersionPublisher(SETTINGS, context, producer, CountedLetters.fingerprint)
    labels = [label(number, float(number % 2), minutes=60 * number) for number in range(20)]
    others = [
        each.model_copy(update={"votes": tuple(v.model_copy(update={"user_id": f"u{n}"}) for v in each.votes)}) for n, each in enumerate(labels[16:])
    ]
    refitter.absorb(refitter.prepare([*labels[:16], *others]))  # ada gave 16 of 20, and may hold as much as each of the four others
    event = versions.refit_and_publish(refitter, {0: 20})
    assert event is not None
    assert event.largest_person_share == pytest.approx(1 / 5)
    assert context.metrics.value("tidemill_reward_largest_person_share_ratio") == event.largest_person_share
    assert context.metrics.value("tidemill_reward_capped_ratio", rule="person") == pytest.approx(15 / 20)
    assert [context.metrics.value("tidemill_reward_capped_ratio", rule=rule) for rule in ("tenant", "hour", "repeated", "newcomer")] == [0.0] * 4
    producer.close()
