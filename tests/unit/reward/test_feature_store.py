"""Features outlive a restart, are computed once and together, and leave with an erasure."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reward.features.feature_store import FeatureStore, StoredFeatures, content_key
from reward.features.featurizer import Pair
from reward.fit.label_entries import entries_of
from reward.settings import RewardSettings
from streams.core.events import Message
from tests.support.label_world import LabelWorld
from tests.unit.reward.test_refitter import TEN, CountedLetters, label

torch.set_num_threads(1)


class CountingLetters(CountedLetters):
    """Remembers what was asked together."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def features(self, pairs: Sequence[Pair]) -> Tensor:
        self.asked.append(len(pairs))
        return super().features(pairs)

    def clear_cache(self) -> None:
        return None


def pairs(*answers: str) -> list[Pair]:
    return [((Message(role="user", content="tea?"),), answer) for answer in answers]


def stored(path: Path, inner: CountingLetters, in_memory: int = 0, most: int = 100) -> StoredFeatures:
    return StoredFeatures(inner, in_memory, FeatureStore(path, most))


def test_after_a_restart_nothing_is_computed_twice(tmp_path: Path) -> None:
    first, second = CountingLetters(), CountingLetters()
    before = stored(tmp_path / "f", first).features(pairs("you", "tea", "you"))
    again = stored(tmp_path / "f", second).features(pairs("you", "tea", "tea", "new"))
    assert (first.asked, second.asked) == ([2], [1])
    assert torch.equal(again[:2], before[:2])
    assert torch.equal(again, CountedLetters().features(pairs("you", "tea", "tea", "new")))


def test_other_features_or_other_words_are_other_content() -> None:
    asked = (Message(role="user", content="ab"),)
    keys = {content_key(kind, one) for kind in ("a", "b") for one in ((asked, "c"), ((), "abc"), ((Message(role="user", content="a"),), "bc"))}
    assert len(keys) == 6


def test_the_labels_of_a_batch_are_computed_together_and_come_out_as_alone() -> None:
    labels = [*TEN, label(20, None, votes=[("correction", "better tea"), ("correction", "you")]), label(21, None)]
    inner = CountingLetters()
    together = entries_of(labels, inner)
    assert inner.asked == [13]  # ten answers; one answer with two corrections; nothing of a withdrawn label
    alone = [entries_of([one], CountedLetters())[0] for one in labels]
    assert [entry.encode() for entry in together] == [entry.encode() for entry in alone]
    assert together[-1].features_D is None


def test_the_file_is_bounded_and_the_oldest_leave_first(tmp_path: Path) -> None:
    inner = CountingLetters()
    features = stored(tmp_path / "f", inner, most=5)
    for n in range(9):
        features.features(pairs("you" * n))
    inner.asked.clear()
    features.features(pairs(*("you" * n for n in range(4, 9))))
    assert inner.asked == []
    features.features(pairs("you" * 3))
    assert inner.asked == [1]


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"no database" * 1000)
    inner = CountingLetters()
    stored(tmp_path / "f", inner).features(pairs("you"))
    stored(tmp_path / "f", inner).features(pairs("you"))
    assert inner.asked == [1]


@pytest.mark.parametrize("in_memory", [0, 100])
def test_an_erasure_takes_a_persons_features_out_of_memory_and_file(tmp_path: Path, in_memory: int) -> None:
    """Not only out of reach: their bytes are gone. The label that is left of the episode is computed anew."""
    inner = CountingLetters()
    features = stored(tmp_path / "f", inner, in_memory)
    world = LabelWorld(tmp_path, RewardSettings(heads=2, folds=2), features)
    with world.updater() as steps:
        world.add([label(1, 1.0, "y" * 31, at=1), label(2, 0.0, "e" * 17, at=2)])
        world.read(steps, batch=10)
        row = CountedLetters().features(pairs("y" * 31))[0].numpy().astype("<f4").tobytes()
        held = [path for path in tmp_path.iterdir() if path.name.startswith("f")]
        assert any(row in path.read_bytes() for path in held)
        world.add([label(1, 1.0, "tea", at=1).model_copy(update={"erasures": 1})])
        world.read(steps, batch=10)
    assert not any(row in path.read_bytes() for path in held if path.exists())
    inner.asked.clear()
    features.features(pairs("y" * 31))
    assert inner.asked == [1]
