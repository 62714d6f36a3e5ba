"""Work and memory grow with the labels, not with their square: operations are counted, since times depend on the machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reward.evaluation.calibration import area_under_curve
from reward.evaluation.version_replay import Replay
from reward.fit.label_entries import labels_and_tombstones
from reward.settings import RewardSettings
from streams.core.topics import LABELS
from streams.kafka import Record
from streams.lake.parquet_lake import Lake


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that was made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            self.largest = max(self.largest, each.numel() if isinstance(each, Tensor) else 0)
        return made


@given(st.lists(st.tuples(st.sampled_from((0.0, 0.1, 0.25, 0.5, 0.9)), st.booleans()), min_size=1, max_size=40))
def test_auc_by_ranks_is_auc_by_pairs(labels: list[tuple[float, bool]]) -> None:
    good, bad = [chance for chance, is_good in labels if is_good], [chance for chance, is_good in labels if not is_good]
    pairs = [(a > b) + (a == b) / 2 for a in good for b in bad]
    found = area_under_curve(torch.tensor([chance for chance, _ in labels]), torch.tensor([is_good for _, is_good in labels]))
    assert found == (None if not pairs else found) if pairs else found is None
    assert not pairs or abs((found or 0.0) - sum(pairs) / len(pairs)) < 1e-12


def test_auc_takes_no_memory_for_each_pair() -> None:
    chances_N, good_N = torch.rand(20_000), torch.rand(20_000) < 0.5
    with LargestTensor() as seen:
        area_under_curve(chances_N, good_N)
    assert 10_000 <= seen.largest <= 40_000


class CountedLabel:
    """A label that counts how often its id is looked at."""

    looks = 0

    def __init__(self, episode_id: str) -> None:
        self._episode_id = episode_id

    @property
    def episode_id(self) -> str:
        CountedLabel.looks += 1
        return self._episode_id


def test_tombstones_do_not_look_at_all_labels_before_them() -> None:
    count = 400
    records = [Record(LABELS.name, 0, n, 0, f"ep-{n % count}".encode(), b"{}" if n < count or n % 2 else None) for n in range(2 * count)]
    CountedLabel.looks = 0
    read, gone = labels_and_tombstones(records, lambda record: CountedLabel((record.key or b"").decode()))  # type: ignore[arg-type,return-value]
    assert CountedLabel.looks <= len(records)
    assert len(gone) == count // 2
    assert [each.offset for each in read] == [n for n in range(2 * count) if (n < count and n % 2) or (n >= count and n % 2)]


def test_a_label_after_its_tombstone_stands() -> None:
    records = [Record(LABELS.name, 0, n, 0, b"ep", value) for n, value in enumerate((b"{}", None, b"{}", b"{}"))]
    read, gone = labels_and_tombstones(records, lambda record: CountedLabel("ep"))  # type: ignore[arg-type,return-value]
    assert ([each.offset for each in read], gone) == ([2, 3], ("ep",))


class CountingLake(Lake):
    """Counts the records that are read from it."""

    given = 0

    def records(self, *given: Any, **more: Any) -> Iterator[Record]:
        for record in super().records(*given, **more):
            self.given += 1
            yield record


class NoFeatures:
    """Features that nobody asks for."""

    fingerprint, blocks = "f" * 64, ((1, 1.0),)


def test_a_replay_reads_each_label_once_and_no_further_than_its_version(tmp_path: Path) -> None:
    lake = CountingLake(str(tmp_path), batch_rows=10)
    for partition in range(3):
        for start in range(0, 100, 20):
            lake.write(LABELS, [Record(LABELS.name, partition, start + n, 0, b"k", None) for n in range(20)])
    replay = Replay(lake, "default", RewardSettings(), NoFeatures(), partitions=3)  # type: ignore[arg-type]
    taken: list[tuple[int, int]] = []
    for end in (5, 5, 40, 90):
        before = len(taken)
        taken += [(record.partition, record.offset) for record in replay.take({0: end, 2: end})]
        assert taken[before:] == sorted(taken[before:])
        assert lake.given <= len(taken) + 3
    assert sorted(taken) == [(partition, offset) for partition in (0, 2) for offset in range(90)]
