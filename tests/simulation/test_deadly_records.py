"""A record that kills the process that reads it: at its third life the part sets it aside and goes on. One test a part, each with its own way to die.

The join has its own in ``tests/unit/streams/test_poison_records.py``, the adapter loader in ``tests/unit/actor/test_adapter_loader.py``.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from actor.critic.critic_loop import Critic, JudgedRecords
from actor.critic.critic_settings import CriticSettings
from actor.promotion.promoter import Promoter
from actor.promotion.promotion_evidence import PromotionEvidence
from actor.promotion.promotion_settings import PromotionSettings
from learner.ring.learner_inputs import LogFeed
from learner.ring.prompt_pool import PromptPool
from learner.settings import LearnerSettings
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from reward.updater import refitter
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import DeadLetter, Episode, Event, Label
from streams.core.part_context import PartContext
from streams.core.topics import DEAD_LETTERS, EPISODES, LABELS, REWARD_MODELS
from streams.join.join_settings import EvidenceSettings
from streams.kafka.dead_letters import DeadLetters
from streams.lake.event_columns import EventColumns
from streams.lake.lake_loop import rows_in_hand
from streams.lake.lake_session import LakeSession
from streams.lake.lake_settings import LakeSettings
from streams.lake.parquet_lake import Lake
from tests.support.label_world import LabelWorld
from tests.support.simulated_clients import at, install, producer
from tests.support.simulated_log import Killed, SimulatedLog
from tests.unit.actor.test_candidate_scoring import head
from tests.unit.reward.test_refitter import CountedLetters, label

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIVES = 3
"""The first two end with the record in hand."""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> SimulatedLog:
    return install(monkeypatch, SimulatedLog())


def context(folder: Path) -> PartContext:
    return PartContext(at("part"), ArtifactStore(str(folder / "artifacts")), "default", folder, folder)


def episode(name: str) -> Episode:
    given = {"episode_id": name, "messages": [{"role": "user", "content": f"{name}?"}], "answer": name, "started_at": NOW, "ended_at": NOW}
    return Episode.model_validate(given)


def deadly(method: Callable[..., Any], kills: Callable[[Any], bool]) -> Callable[..., Any]:
    """The method, which ends the process when it is given that."""

    def killing(*given: Any, **named: Any) -> Any:
        if any(map(kills, given)):
            raise Killed
        return method(*given, **named)

    return killing


def is_poison(given: Any) -> bool:
    return isinstance(given, Episode | Label) and given.answer == "poison"


def letters(log: SimulatedLog) -> list[tuple[str, str, str]]:
    """Who set what aside, and why."""
    return [(each.part, each.source_topic, each.reason) for each in log.events(DEAD_LETTERS) if isinstance(each, DeadLetter)]


def test_the_learners_feed(log: SimulatedLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(PromptPool, "add", deadly(PromptPool.add, is_poison))
    for name in ("before", "poison", "after"):
        producer().publish(EPISODES, episode(name))
    for life in range(1, LIVES + 1):
        feed = LogFeed(LearnerSettings(), context(tmp_path), producer(), "f" * 64)
        if life < LIVES:
            with pytest.raises(Killed):
                feed.read(0)
    feed.read(0)
    assert len(feed.prompts) == 2
    assert letters(log) == [("learner", EPISODES.name, "deadly")]


def test_a_reward_model_that_kills_the_learner_when_it_is_loaded(log: SimulatedLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(RewardModel, "load", deadly(RewardModel.load, lambda given: isinstance(given, Path)))
    artifact = context(tmp_path).artifacts.put(head().save(tmp_path / "head"), "reward-models/1")
    known = {"labels": 1, "accuracy": 1, "baseline": 1, "brier": 0, "ece": 0}
    fields = {"policy": "default", "version": 1, "backbone_fingerprint": "0" * 64, "labels": 1, "offsets": {}, "newest_feedback_at": NOW}
    version = REWARD_MODELS.event.model_validate(fields | {"artifact": artifact, "calibration": known, "created_at": NOW})
    producer().publish(REWARD_MODELS, version)
    for life in range(1, LIVES + 1):
        feed = LogFeed(LearnerSettings(), context(tmp_path), producer(), "f" * 64)
        if life < LIVES:
            with pytest.raises(Killed):
                feed.read(0)
    feed.read(0)
    assert not feed.is_ready
    assert letters(log) == [("learner", REWARD_MODELS.name, "deadly")]


def holds_poison(given: Any) -> bool:
    return isinstance(given, list) and any(map(is_poison, given))


def test_the_reward_updater_which_takes_labels_together_until_it_has_died_of_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(refitter, "entries_of", deadly(refitter.entries_of, holds_poison))
    world = LabelWorld(tmp_path, RewardSettings(), CountedLetters())
    world.add([label(1, 1.0), label(2, 1.0, "poison"), label(3, 0.0)])
    for life in range(1, LIVES + 2):
        with world.updater() as steps:
            if life <= LIVES:
                with pytest.raises(Killed):
                    world.read(steps, batch=128)
            else:
                world.read(steps, batch=128)
    assert set(world.stored) == {"ep-1", "ep-3"}
    assert letters(world.log) == [("reward", LABELS.name, "deadly")]


def test_a_label_of_which_no_features_can_be_made_does_not_end_the_updater(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def failing(labels: list[Label], *given: Any) -> Any:
        if holds_poison(labels):
            raise ValueError("poison")
        return entries_of(labels, *given)

    entries_of = refitter.entries_of
    monkeypatch.setattr(refitter, "entries_of", failing)
    world = LabelWorld(tmp_path, RewardSettings(), CountedLetters())
    world.add([label(1, 1.0), label(2, 1.0, "poison"), label(3, 0.0)])
    with world.updater() as steps:
        world.read(steps, batch=128)
        assert set(world.stored) == {"ep-1", "ep-3"}
        world.add([label(4, 1.0), label(5, 0.0)])
        world.read(steps, batch=128)
    assert set(world.stored) == {"ep-1", "ep-3", "ep-4", "ep-5"}
    assert letters(world.log) == [("reward", LABELS.name, "unusable")]


def test_the_lake_which_keeps_the_bytes_of_what_killed_it(log: SimulatedLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The columns of many are worked out at once: the first death does not tell of whom."""
    monkeypatch.setattr(EventColumns, "_decoded", deadly(EventColumns._decoded, lambda given: isinstance(given, bytes) and b"poison" in given))
    names = ("before", "poison", "after")
    for name in names:
        producer().publish(EPISODES, episode(name))
    for life in range(1, LIVES + 2):
        lake = Lake(str(tmp_path / "lake"), rows=rows_in_hand(context(tmp_path)))
        session = LakeSession(LakeSettings(), context(tmp_path), lake, EvidenceSettings())
        session.turn()
        if life <= LIVES:
            with pytest.raises(Killed):
                session.finish()
    session.finish()
    assert {record.key for record in Lake(str(tmp_path / "lake")).records(EPISODES)} == {name.encode() for name in names}
    assert all(record.value for record in Lake(str(tmp_path / "lake")).records(EPISODES))
    rows = [row for file in lake.files(EPISODES) for row in pyarrow.parquet.read_table(file.path, partitioning=None).to_pylist()]
    assert {row["key"]: row["invalid_reason"] for row in rows} == {b"before": None, b"poison": "deadly", b"after": None}
    assert letters(log) == [("lake", EPISODES.name, "deadly")]


def test_the_critic(log: SimulatedLog, tmp_path: Path) -> None:
    class Judge:
        def chance(self, question: str, answer: str, sentence: str, reply: str | None = None) -> float:
            return 0.9

    critic = Critic(CriticSettings(rubric=("It answers.",), share=1.0), Judge(), context(tmp_path))
    critic.feedback = deadly(critic.feedback, is_poison)  # type: ignore[method-assign]
    for name in ("before", "poison", "after"):
        producer().publish(EPISODES, episode(name))
    records = sorted(log.records(EPISODES), key=lambda record: record.key != b"before")
    for life in range(1, LIVES + 1):
        judging = JudgedRecords(critic, context(tmp_path), DeadLetters(producer(), context(tmp_path).clock, context(tmp_path).metrics, "critic"))
        if life < LIVES:
            with pytest.raises(Killed):
                said = [judging.feedback_on(record) for record in records]
    said = [each.episode_id for record in records for each in judging.feedback_on(record)]
    assert sorted(said) == ["after", "before"]
    assert letters(log) == [("critic", EPISODES.name, "deadly")]


def test_the_promoter_which_reads_everything_again_at_each_start_sets_it_aside_once(
    log: SimulatedLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def kills(given: Event) -> bool:
        return is_poison(given)

    monkeypatch.setattr(PromotionEvidence, "note", deadly(PromotionEvidence.note, kills))
    for name in ("before", "poison", "after"):
        producer().publish(EPISODES, episode(name))
    trials: Any = None  # nothing is on trial
    for life in range(1, LIVES + 3):
        promoter = Promoter(PromotionSettings(), trials, context(tmp_path))
        if life < LIVES:
            with pytest.raises(Killed):
                promoter.turn()
        else:
            promoter.turn()
            assert sorted(each.episode_id for each in promoter.observed.episodes) == ["after", "before"]
            promoter.close()
    assert letters(log) == [("promoter", EPISODES.name, "deadly")]
