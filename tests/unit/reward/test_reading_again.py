"""An updater that reads all labels again publishes nothing until it has caught up, and a version names what was read for it."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reward.evaluation.version_replay import published_model
from reward.settings import RewardSettings
from reward.updater.publishing_rule import PublishingRule
from reward.updater.read_progress import ReadProgress
from streams.core.errors import Unavailable
from streams.core.events import Label, RewardModelVersion
from streams.core.topics import LABELS
from tests.support.label_world import LabelWorld
from tests.unit.reward.test_refitter import CALM, CountedLetters, label, refitter

torch.set_num_threads(1)
SETTINGS = RewardSettings(heads=3, folds=3, buffer_labels=200, min_labels=16, person_share=1.0, l2=1.0, batch_labels=128)
TURN, TOTAL, NEWEST = 300, 600, 150


def history(seed: int) -> list[Label]:
    """People like many "you" in the first half of the labels, and many "tea" in the second; one thumb in ten is a slip."""
    draw = random.Random(seed)
    labels = []
    for number in range(TOTAL):
        yous, teas = draw.randrange(4), draw.randrange(4)
        liked = yous >= teas if number < TURN else teas > yous
        labels.append(label(number, float(liked != (draw.random() < 0.1)), "you " * yous + "tea " * teas + "e" * draw.randrange(3), at=number))
    return labels


def accuracy_on_newest(world: LabelWorld, version: RewardModelVersion, labels: list[Label]) -> float:
    newest = labels[-NEWEST:]
    said_N = published_model(version, world.context.artifacts).score(CountedLetters().features([((), each.answer) for each in newest])).mean_N
    return float(((said_N >= 0.5) == (torch.tensor([each.verdict for each in newest]) >= 0.5)).float().mean())


def world_of(folder: Path, labels: list[Label], settings: RewardSettings = SETTINGS) -> LabelWorld:
    """A world whose updater has read the labels as they came, and published."""
    world = LabelWorld(folder, settings, CountedLetters())
    with world.updater() as steps:
        for begin in range(0, len(labels), 128):
            world.add(labels[begin : begin + 128])
            world.read(steps, batch=128)
    return world


@pytest.mark.parametrize("seed", range(10))
def test_a_version_published_after_all_labels_are_read_again_is_as_good_as_the_one_before(seed: int, tmp_path: Path) -> None:
    labels = history(seed)
    world = world_of(tmp_path, labels)
    before = world.versions()
    world.lose_state()
    with world.updater() as steps:
        world.read(steps, batch=128)
    again = world.versions()[len(before) :]
    assert len(before) > 3
    lowest = min(accuracy_on_newest(world, version, labels) for version in [before[-1], *again])
    assert lowest >= 0.8, [round(accuracy_on_newest(world, version, labels), 2) for version in again]
    assert [version.offsets[LABELS.name] for version in again] in ([], [world.ends()])


def test_what_a_version_knew_when_it_was_published_is_no_test_of_it(tmp_path: Path) -> None:
    """Read again, the labels are known to the version that stands: what it says of them is no prediction."""
    world = world_of(tmp_path, history(0))
    world.lose_state()
    with world.updater() as steps:
        assert all(entry.predicted is None for entry in steps.prepare(world.left()).entries)
        world.add([label(5000, 1.0, "you", at=5000)])
        (entry,) = steps.prepare(world.left()[-1:]).entries
        assert entry.predicted is not None


def test_offsets_name_what_was_read_and_not_what_a_former_version_had_seen(tmp_path: Path) -> None:
    world = world_of(tmp_path, history(0)[:200], SETTINGS.model_copy(update={"publish_tolerance_se": 10.0}))
    assert world.versions()[-1].offsets == {LABELS.name: world.ends()}
    with world.updater() as steps:  # the store is whole, and more labels come
        world.add(history(0)[200:260])
        world.read(steps, batch=128)
    assert world.versions()[-1].offsets == {LABELS.name: world.ends()}


def test_without_word_where_the_labels_end_there_is_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = LabelWorld(tmp_path, SETTINGS, CountedLetters())
    world.add(history(0)[:100])
    ends, away = world.ends, [True]

    def asked() -> dict[int, int]:
        if away[0]:
            raise Unavailable("Kafka is away")
        return ends()

    monkeypatch.setattr(world, "ends", asked)
    with world.updater() as steps:
        world.read(steps, batch=50)
        assert world.versions() == []
        away[0] = False
        world.add(history(0)[100:101])
        world.read(steps, batch=50)
    (version,) = world.versions()
    assert version.offsets == {LABELS.name: ends()}


def test_an_updater_has_caught_up_when_each_partition_is_read_to_where_it_ended() -> None:
    progress = ReadProgress()
    assert not progress.caught_up
    progress.begin({0: 5}, {0: 7, 1: 2, 2: 0})
    progress.note([(0, 6)])
    assert (progress.caught_up, progress.labels_left) == (False, 2)
    progress.note([(1, 1)])
    assert progress.caught_up
    assert progress.offsets == {0: 7, 1: 2}
    assert progress.is_ahead_of({0: 7, 1: 1})
    assert not progress.is_ahead_of({0: 7, 1: 2})


def test_a_version_names_what_an_updater_that_starts_again_must_know(tmp_path: Path) -> None:
    world = world_of(tmp_path, history(0)[:260])
    newest = world.versions()[-1]
    assert newest.base_measures["length"] > 0
    with world.updater() as steps:
        assert steps._watch.base_measures() == newest.base_measures


def test_steps_that_are_each_no_worse_than_the_last_do_not_lead_down() -> None:
    """The rule also compares with the best version: one that the last hides behind its own mistakes is found."""
    good, poor = (refitter(*some, settings=SETTINGS).refit().model for some in (history(0)[:100], history(0)[400:500]))
    assert good is not None
    assert poor is not None
    rule, newest = PublishingRule(SETTINGS), refitter(*history(0)[100:300], settings=SETTINGS).buffer.with_verdict(200)
    poorer = replace(poor, temperature=poor.temperature / 2)  # surer, and wrong
    assert rule.decide(poor, poorer, newest, CALM, 0, erasure=False).result == "published"
    assert rule.decide(poor, poorer, newest, CALM, 0, erasure=False, best=good).result == "worse"
    assert rule.better(poor, good, newest) is good
    assert rule.better(good, poor, newest) is good
