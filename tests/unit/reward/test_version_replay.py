"""Versions again from the lake, and scores with their reasons."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from reward.evaluation.score_explanation import explain
from reward.evaluation.version_replay import Replay, episode_of, fit_who_votes, rebuild_all, versions_of
from reward.updater.refitter import Refitter
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import ConfigError
from streams.core.events import Episode, Event, Label, Message, RewardModelVersion
from streams.core.topics import EPISODES, LABELS, REWARD_MODELS, Topic
from streams.kafka import Record
from streams.lake.parquet_lake import Lake
from tests.unit.reward.test_refitter import SMALL, CountedLetters, label, refitter

torch.set_num_threads(1)
T0 = datetime(2026, 1, 1, tzinfo=UTC)
T0_MS = int(T0.timestamp() * 1000)


def put(lake: Lake, topic: Topic[Event], events: Sequence[Event], first: int = 0, partition: int = 0) -> None:
    lake.write(
        topic, [Record(topic.name, partition, first + n, T0_MS + 1000 * (first + n), e.key.encode(), e.encode()) for n, e in enumerate(events)]
    )


class World:
    """A lake and an artifact store, and an updater that publishes into both."""

    def __init__(self, folder: Path) -> None:
        self.lake, self.artifacts = Lake(str(folder / "lake")), ArtifactStore(str(folder / "artifacts"))
        self.folder, self.live = folder, Refitter(SMALL, CountedLetters())
        self.offset = self.number = 0

    def label(self, *labels: Label) -> None:
        put(self.lake, LABELS, labels, self.offset)  # type: ignore[arg-type]
        self.offset += len(labels)
        self.live.absorb(self.live.prepare(labels))

    def publish(self) -> RewardModelVersion:
        model, self.number = self.live.fitted(), self.number + 1
        refit = self.live.refit()
        self.live.published = model
        event = RewardModelVersion(
            policy="default",
            version=self.number,
            artifact=self.artifacts.put(model.save(self.folder / f"model-{self.number}"), f"reward-models/{self.number}"),
            backbone_fingerprint=CountedLetters.fingerprint,
            labels=refit.labels,
            calibration=refit.evaluation.calibration,
            slices=refit.evaluation.slices,
            offsets={LABELS.name: {0: self.offset}},
            newest_feedback_at=T0,
            created_at=T0,
        )
        put(self.lake, REWARD_MODELS, [event], self.number - 1)  # type: ignore[arg-type]
        return event

    def replay(self) -> Replay:
        return Replay(self.lake, "default", SMALL, CountedLetters())


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.label(*(label(i, float(i % 3 == 1), at=i) for i in range(12)))
    made.publish()
    made.label(label(3, 1.0, at=60, folded=2), label(4, None, at=61, folded=2), *(label(i, float(i % 2), at=i) for i in range(20, 28)))
    made.publish()
    return made


def test_every_version_is_made_again_from_the_lake_and_is_equal(world: World) -> None:
    rebuilt = list(rebuild_all(world.replay(), versions_of(world.lake, "default"), world.artifacts))
    assert [(r.version, r.equal) for r in rebuilt] == [(1, True), (2, True)]
    assert rebuilt[0].rebuilt != rebuilt[1].rebuilt


def test_a_version_whose_labels_were_tampered_with_is_not_equal(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    other.label(*(label(i, float(i % 3 == (1 if i != 5 else 2)), at=i) for i in range(12)))
    (rebuilt,) = rebuild_all(other.replay(), versions_of(world.lake, "default")[:1], world.artifacts)
    assert not rebuilt.equal


def test_versions_are_chosen_by_when_they_were_published(world: World) -> None:
    assert [v.version for v in versions_of(world.lake, "default", since=T0 + timedelta(seconds=1))] == [2]
    assert [v.version for v in versions_of(world.lake, "default", until=T0 + timedelta(seconds=1))] == [1]
    assert versions_of(world.lake, "another") == []


def test_a_lake_that_lacks_labels_is_no_proof(world: World) -> None:
    ahead = versions_of(world.lake, "default")[-1].model_copy(update={"offsets": {LABELS.name: {0: 99}}})
    with pytest.raises(ConfigError, match="the lake ends at 22"):
        world.replay().reach(ahead)
    with pytest.raises(ConfigError, match="other features"):
        world.replay().reach(ahead.model_copy(update={"backbone_fingerprint": "b" * 64}))


def test_what_moved_a_score_sums_to_the_score() -> None:
    """Thumbs, ratings by thresholds, a correction: every part of every head's logit is some label's."""
    labels = [label(i, float(i % 3 == 1), at=i) for i in range(12)]
    made = refitter(*labels, label(30, None, "tea", at=30, votes=[("correction", "you and you")]))
    rated = replace(made.buffer.with_verdict()[0], evidence=(("ratings", 0.25, 1.0),), ratings=(2,), feedback_count=9, verdict=0.25)
    made.buffer.add([replace(rated, newest_feedback_at=T0 + timedelta(days=1))])
    model, features_D = made.fitted(), CountedLetters().features([((), "you you tea")])[0]
    told = explain(model, made.weighted(), made.recipe(), features_D, most=3)
    logits_K = model.standardise(features_D[None])[0] @ model.heads_KD.T + model.head_bias_K
    calibrated = float((logits_K / model.temperature + model.offset).mean())
    assert sum(m.logits for m in told.moved) + told.others + told.standing == pytest.approx(calibrated, abs=1e-4)
    assert len(told.moved) == 3
    assert abs(told.moved[0].logits) >= abs(told.moved[-1].logits)
    assert told.mean == pytest.approx(float(model.score(features_D[None]).mean_N[0]))


def test_a_good_label_of_the_same_answer_speaks_for_it_and_is_its_nearest_neighbour() -> None:
    plain = [label(i, float(i % 2), "e" * (i % 5) + "t", at=i) for i in range(12)]
    made = refitter(*plain, label(50, 1.0, "you you you", at=50))
    told = explain(made.fitted(), made.weighted(), made.recipe(), CountedLetters().features([((), "you you you")])[0])
    assert told.neighbours[0].episode_id == "ep-50"
    assert told.neighbours[0].similarity == pytest.approx(1.0)
    assert told.moved[0].episode_id == "ep-50"
    assert told.moved[0].logits > 0


def episode(number: int, user_id: str = "ann") -> Episode:
    said = (Message(role="user", content="tea?"),)
    return Episode(episode_id=f"ep-{number}", user_id=user_id, messages=said, answer="you", started_at=T0, ended_at=T0 + timedelta(seconds=number))


def test_an_episode_is_found_in_the_lake_or_said_to_be_missing(world: World) -> None:
    put(world.lake, EPISODES, [episode(n) for n in range(3)])  # type: ignore[arg-type]
    assert episode_of(world.lake, "ep-2").episode_id == "ep-2"
    with pytest.raises(ConfigError, match="no episode ep-9"):
        episode_of(world.lake, "ep-9")


def test_who_votes_is_learned_from_the_lakes_episodes_with_and_without_labels(world: World) -> None:
    """Ann is labelled in 11 of 12 episodes (one was withdrawn), bob in none of 40."""
    put(world.lake, EPISODES, [*(episode(n) for n in range(12)), *(episode(n, "bob") for n in range(100, 140))])  # type: ignore[arg-type]
    model, effect = fit_who_votes(world.lake, "default", None, None, 5.0)
    assert (effect.episodes, effect.votes) == (52, 11)
    assert sorted(model.people.values()) == [(12, 11), (40, 0)]
    assert effect.auc > 0.9
