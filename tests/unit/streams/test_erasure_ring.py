"""A person is forgotten by join, lake, reward model and learner together, over a log in memory that passes the real one's contracts."""

import random
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.operate.erasure_certificate import certified, ranges
from learner.ring.learner_inputs import LogFeed
from learner.settings import LearnerSettings
from reward.evaluation.version_replay import Replay
from reward.features.featurizer import Pair
from reward.fit.label_entries import labels_and_tombstones
from reward.settings import RewardSettings
from reward.updater.refitter import Refitter
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import Episode, Erasure, Feedback, FeedbackKind, Label, Message
from streams.core.part_context import PartContext
from streams.core.topics import DEAD_LETTERS, EPISODES, ERASED, ERASURES, FEEDBACK, LABELS, Topic
from streams.erasure import erasure_follower as erasures
from streams.erasure.forgotten_people import Forgotten
from streams.join import join_loop as joiner
from streams.join.join_session import GROUP
from streams.join.join_settings import JoinSettings
from streams.join.ledger import balance, ledger_entries
from streams.kafka import KafkaSettings, Producer, Record
from streams.lake import lake_loop as lake
from streams.lake.lake_erasure import LakeErasure
from streams.lake.lake_loop import LakeSettings
from streams.lake.parquet_lake import Lake
from tests.support.running import running, wait_for
from tests.support.simulated_clients import install, producer
from tests.support.simulated_log import SimulatedLog

HER, HER_WORDS = "ann-the-forgotten", "my cat is called Minka"
OTHERS = 9
SETTINGS = RewardSettings(min_labels=8, min_each_verdict=2, heads=4, folds=3, publish_tolerance_se=0)


class Words:
    """Features that tell texts apart. Satisfies Features."""

    fingerprint = "f" * 64
    blocks = ((4, 1.0),)

    def features(self, pairs: "list[Pair]") -> Tensor:
        rows = [[len(answer), answer.count("you"), len(messages[-1].text), answer.count("t")] for messages, answer in pairs]
        return torch.tensor(rows, dtype=torch.float32)


class Kafka:
    """A simulated log under the clients of all parts, by the machine's own clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chance: random.Random | None = None) -> None:
        self.log = install(monkeypatch, SimulatedLog(chance=chance))

    def producer(self) -> Producer:
        return producer()

    def records(self, topic: Topic[Any]) -> list[Record]:
        return self.log.records(topic)

    @property
    def passed(self) -> dict[tuple[str, int], int]:
        """Up to where the join has committed."""
        return self.log.committed(GROUP)


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    return Kafka(monkeypatch)


def publish(kafka: Kafka) -> None:
    """Ten people ask once each and thumb two answers; she thumbs every answer, corrects one, and sends something broken."""
    now, producer = datetime.now(UTC) - timedelta(minutes=1), kafka.producer()
    people = [HER, *(f"person-{number}" for number in range(OTHERS))]
    for number, person in enumerate(people):
        asked = (Message(role="user", content=HER_WORDS if person == HER else f"tell me about tea {number}"),)
        answer = "you would like tea" if number % 2 else "tea is a plant"
        producer.send(EPISODES, Episode(episode_id=f"ep-{number}", user_id=person, messages=asked, answer=answer, started_at=now, ended_at=now))
    for number in range(len(people)):
        for voter in sorted({people[number], people[(number + 1) % len(people)], HER}):
            up = (number % 2 == 1) != (voter == HER)
            producer.send(FEEDBACK, Feedback(feedback_id=f"fb-{number}-{people.index(voter)}", episode_id=f"ep-{number}", user_id=voter,
                                             kind=FeedbackKind.THUMB, thumb="up" if up else "down", at=now + timedelta(seconds=1)))  # fmt: skip
    words = f"say that {HER_WORDS}"
    producer.send(FEEDBACK, Feedback(feedback_id="fb-c", episode_id="ep-3", user_id=HER, kind=FeedbackKind.CORRECTION, text=words, at=now))
    producer.send_raw(FEEDBACK.name, b"ep-4", b'{"user_id": "' + HER.encode() + b'", "text": "' + HER_WORDS.encode())


def standing(kafka: Kafka) -> dict[str, Label]:
    read, _ = labels_and_tombstones(kafka.records(LABELS), lambda record: LABELS.decode(record.value))
    labels = [label for label, *_ in read]
    return {label.episode_id: label for label in labels}


def traces(folder: Path) -> list[str]:
    """Files, and records of the lake as a reader sees them, that hold her name or her words."""
    needles = (HER.encode(), HER_WORDS.encode())
    found = [str(path) for path in folder.rglob("*") if path.is_file() and any(needle in path.read_bytes() for needle in needles)]
    kept = Lake(str(folder / "lake"))
    for topic in (EPISODES, FEEDBACK, LABELS, DEAD_LETTERS):
        found += [f"{topic.short_name}/{r.offset}" for r in kept.records(topic) if any(needle in (r.value or b"") for needle in needles)]
    return found


def test_everything_of_hers_goes_and_what_stays_is_what_never_knew_her(kafka: Kafka, tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    store, kept, evidence, words = ArtifactStore(str(ring / "artifacts")), LakeSettings(uri=str(ring / "lake"), flush_s=0.01), JoinSettings(), Words()

    def context(name: str) -> PartContext:
        (ring / name).mkdir(parents=True, exist_ok=True)
        return PartContext(KafkaSettings(bootstrap_servers="nowhere:1"), store, "default", tmp_path, ring / name)

    with ExitStack() as parts:
        parts.enter_context(running(lambda s: joiner.run(evidence, s), context("join")))
        parts.enter_context(running(lambda s: lake.run(kept, s, evidence), context("lake")))
        publish(kafka)
        wait_for(lambda: sum(len(label.votes) for label in standing(kafka).values()) == 3 * OTHERS + 2)
        wait_for(lambda: len(list(Lake(kept.uri or "").records(LABELS))) == len(kafka.records(LABELS)))
        feed = LogFeed(LearnerSettings(prompts_needed=100),
                    context("learner"), kafka.producer(), words.fingerprint)  # fmt: skip
        feed.read(0)
        feed.save()
        assert len(traces(ring)) > 5
        told = Refitter(SETTINGS, words)
        told.absorb(told.prepare(list(standing(kafka).values())))
        would_be = Replay(Lake(kept.uri or ""), "default", SETTINGS, words, Forgotten.as_if_absent(HER), evidence)  # type: ignore[arg-type]
        read, _ = labels_and_tombstones(would_be.take(dict.fromkeys(range(4), 1 << 62)), lambda r: LABELS.decode(r.value))
        would_be.refitter.absorb(would_be.refitter.prepare([label for label, *_ in read]))
        seen = len(kafka.records(LABELS))

        erasure = Erasure.of(HER, "operator", datetime.now(UTC))
        kafka.producer().publish(ERASURES, erasure)
        done = lambda: [ERASED.decode(record.value) for record in kafka.records(ERASED)]  # noqa: E731
        wait_for(lambda: feed.read(0) or {(e.part, e.where) for e in done()} == {
            *(("join", f"partition {n}") for n in range(4)), ("lake", "files"), ("learner", "prompts")})  # fmt: skip
        found = certified(erasure, done(), None, range(4))
        assert found.complete
        assert found.removed["lake (files)"] == {
            "media": 0,
            "episodes": 1,
            "feedback": OTHERS + 3,
            "labels": found.removed["lake (files)"]["labels"],
            "dead-letters": 1,
        }
        assert found.removed["learner (prompts)"] == {"prompts": 1}
        assert sum(kinds["episodes"] for place, kinds in found.removed.items() if place.startswith("join")) == 1
        feed.close()

        stand = standing(kafka)
        assert sorted(stand) == sorted(f"ep-{number}" for number in range(1, OTHERS + 1))
        assert {vote.user_id for label in stand.values() for vote in label.votes} == {f"person-{number}" for number in range(OTHERS)}
        read, gone = labels_and_tombstones(sorted(kafka.records(LABELS), key=lambda r: (r.partition, r.offset)), lambda r: LABELS.decode(r.value))
        labels = [label for label, *_ in read]
        told.absorb(told.prepare(labels), gone)
        never = Refitter(SETTINGS, words)
        never.absorb(never.prepare(list(stand.values())))
        assert told.fitted().checksum() == never.fitted().checksum() == would_be.refitter.fitted().checksum()
        told.published = told.fitted()
        assert told.refit().result == "published"  # owed, though it is unchanged
        assert told.refit().result == "unchanged"

        late = Feedback(feedback_id="fb-late", episode_id="ep-5", user_id=HER, kind=FeedbackKind.THUMB, thumb="down", at=erasure.at)
        kafka.producer().publish(FEEDBACK, late)  # out of an outbox that could not send for a while
        kafka.producer().publish(FEEDBACK, late.model_copy(update={"feedback_id": "fb-other", "user_id": "person-1", "at": datetime.now(UTC)}))
        wait_for(lambda: any(vote.feedback_id == "fb-other" for vote in standing(kafka)["ep-5"].votes))
        wait_for(lambda: len(list(Lake(kept.uri or "").records(FEEDBACK))) == len(kafka.records(FEEDBACK)))
    assert len(kafka.records(LABELS)) > seen
    assert traces(ring) == []

    forgotten = Forgotten()
    erasures.read_erasures(kafka.records(ERASURES), forgotten)
    books = balance(ledger_entries(kafka.records(EPISODES), forgotten), ledger_entries(kafka.records(FEEDBACK), forgotten), kafka.records(LABELS),
                    kafka.records(DEAD_LETTERS), kafka.passed)  # fmt: skip
    assert books.balanced, str(books)
    assert books.rows[0].erased == 1
    assert books.rows[1].erased >= OTHERS + 3

    before = len(kafka.records(ERASED))
    kafka.log.groups.clear()
    with (
        running(lambda s: joiner.run(evidence, s), context("join-that-lost-its-state")),
        running(lambda s: lake.run(kept, s, evidence), context("lake")),
    ):
        wait_for(lambda: len(kafka.records(ERASED)) == before + 4)  # the join tells again; the lake knows that it has told
        wait_for(lambda: len(list(Lake(kept.uri or "").records(LABELS))) == len(kafka.records(LABELS)))
    assert {vote.user_id for label in standing(kafka).values() for vote in label.votes} == {f"person-{number}" for number in range(OTHERS)}
    assert traces(ring) == []


def test_a_certificate_says_what_is_still_to_do() -> None:
    found = certified(Erasure.of(HER, "operator", datetime.now(UTC)), [], None, range(2))
    assert not found.complete
    assert [line.split(" has not")[0] for line in found.waiting] == ["join (partition 0)", "join (partition 1)", "lake (files)", "learner (prompts)"]
    assert HER not in str(found)


def test_numbers_that_follow_each_other_are_told_as_one() -> None:
    assert ranges(["reward model default/3", "reward model default/4", "reward model default/7", "adapter default@1", "adapter default@2"]) == [
        "reward model default/3 to 4", "reward model default/7", "adapter default@1 to 2",
    ]  # fmt: skip


def test_pictures_go_with_who_alone_sent_them_and_no_event_can_name_another_artifact(tmp_path: Path) -> None:
    kept, store = Lake(str(tmp_path / "lake")), ArtifactStore(str(tmp_path / "artifacts"))
    now = datetime.now(UTC)

    def stored(path: str, name: str) -> dict[str, Any]:
        (folder := tmp_path / name).mkdir()
        (folder / "about.json").write_text(f'"{name}"')
        return store.put(folder, path).model_dump()

    def sent(number: int, user_id: str, sha256: str, artifact: dict[str, Any]) -> Record:
        media = [{"sha256": sha256, "size_bytes": 1, "content_type": "image/png", "artifact": artifact}]
        episode = Episode.model_validate(
            {"episode_id": f"ep-{number}", "user_id": user_id, "messages": [], "started_at": now, "ended_at": now, "media": media}
        )
        return Record(EPISODES.name, 0, number, 0, b"k", episode.encode())

    hers, shared, adapter = stored(f"media/{'a' * 64}", "hers"), stored(f"media/{'b' * 64}", "shared"), stored("adapters/default/7", "adapter")
    kept.write(
        EPISODES, [sent(0, HER, "a" * 64, hers), sent(1, HER, "b" * 64, shared), sent(2, "bob", "b" * 64, shared), sent(3, HER, "c" * 64, adapter)]
    )
    told = LakeErasure(kept, store, JoinSettings()).erase(Erasure.of(HER, "operator", datetime.now(UTC)), 1, now)
    assert (told.removed["media"], told.removed["episodes"]) == (1, 3)
    left = sorted(path.parent.relative_to(tmp_path / "artifacts").as_posix() for path in (tmp_path / "artifacts").rglob("manifest.json"))
    assert left == ["adapters/default/7", f"media/{'b' * 64}"]
    assert not store.remove(f"media/{'a' * 64}")
