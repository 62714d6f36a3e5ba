"""The lake's files: whole or not at all, each offset once, everything as it came."""

import os
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.core.errors import BadArtifact, ConfigError, Unavailable
from streams.core.events import Erasure, Event
from streams.core.topics import EPISODES, ERASURES
from streams.kafka import Record
from streams.lake.parquet_lake import Lake
from streams.lake.write_buffer import WriteBuffer

T0 = datetime(2026, 1, 1, 23, 0, tzinfo=UTC)
T0_MS = int(T0.timestamp() * 1000)


def record(offset: int, hours: float = 0, partition: int = 0, value: bytes | None = b"{}", topic: str = EPISODES.name) -> Record:
    return Record(topic, partition, offset, T0_MS + int(hours * 3_600_000), f"k{offset}".encode(), value)


def offsets(lake: Lake, **span: datetime) -> list[tuple[int, int]]:
    return [(each.partition, each.offset) for each in lake.records(EPISODES, **span)]


def test_records_come_back_as_they_went_in_unreadable_ones_too(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    rows = [record(4), record(5, value=b"\xff\x00 not json"), record(7, value=None), record(9, value=b"")]
    lake.write(EPISODES, rows)
    assert list(lake.records(EPISODES)) == rows


def test_a_file_says_in_its_name_what_it_holds(tmp_path: Path) -> None:
    (written,) = Lake(str(tmp_path)).write(EPISODES, [record(4, partition=2), record(5, partition=2)])
    assert Path(written.path).relative_to(tmp_path).as_posix() == "episodes/day=2026-01-01/002-000000000004-000000000005.parquet"
    assert (written.day, written.partition, written.first, written.last) == (date(2026, 1, 1), 2, 4, 5)


def test_a_batch_over_midnight_is_cut_by_day(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.write(EPISODES, [record(0), record(1, hours=0.9), record(2, hours=1), record(3, hours=2)])
    assert [(file.day.day, file.first, file.last) for file in lake.files(EPISODES)] == [(1, 0, 1), (2, 2, 3)]


def test_a_new_writer_goes_on_after_the_highest_offset_of_each_partition(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    assert lake.positions(EPISODES) == {}
    lake.write(EPISODES, [record(0), record(1)])
    lake.write(EPISODES, [record(2, hours=48)])
    lake.write(EPISODES, [record(0, partition=1)])
    assert Lake(str(tmp_path)).positions(EPISODES) == {0: 3, 1: 1}


def test_a_batch_written_again_overwrites_itself(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for _ in range(2):
        lake.write(EPISODES, [record(0), record(1)])
    assert offsets(lake) == [(0, 0), (0, 1)]
    assert len(lake.files(EPISODES)) == 1


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=12), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_overlapping_files_are_read_each_offset_once(tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, int]], step: int) -> None:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    for first, length in spans:
        lake.write(EPISODES, [record(offset, hours=offset / step) for offset in range(first, first + length)])
    expected = sorted({offset for first, length in spans for offset in range(first, first + length)})
    assert offsets(lake) == [(0, offset) for offset in expected]


def test_what_a_killed_writer_left_is_neither_read_nor_counted_and_is_swept(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.write(EPISODES, [record(0)])
    folder = tmp_path / "episodes" / "day=2026-01-01"
    (folder / f".{'a' * 32}.tmp").write_bytes(b"half")
    (folder / "README.txt").write_bytes(b"not ours")
    assert lake.positions(EPISODES) == {0: 1}
    assert offsets(lake) == [(0, 0)]
    lake.tidy(EPISODES)
    assert sorted(p.name for p in folder.iterdir()) == ["000-000000000000-000000000000.parquet", "README.txt"]


def test_a_write_that_fails_leaves_nothing_behind_and_works_when_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(str(tmp_path))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Unavailable, match="No space left"):
            lake.write(EPISODES, [record(0)])
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    lake.write(EPISODES, [record(0)])
    assert offsets(lake) == [(0, 0)]


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    (written,) = lake.write(EPISODES, [record(0)])
    Path(written.path).write_bytes(Path(written.path).read_bytes()[:-20])
    with pytest.raises(BadArtifact):
        offsets(lake)


def test_a_file_whose_column_names_are_damaged_is_refused(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    (written,) = lake.write(EPISODES, [record(0)])
    right = Path(written.path).read_bytes()
    Path(written.path).write_bytes(damaged := right.replace(b"\x03key", b"\x03\x80ey"))  # no UTF-8 any more
    assert damaged != right
    with pytest.raises(BadArtifact, match="is not the Parquet file that was written"):
        list(lake.records(EPISODES))


def test_a_span_of_time_is_cut_to_the_moment(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.write(EPISODES, [record(i, hours=i) for i in range(30)])
    assert offsets(lake, since=T0 + timedelta(hours=2), until=T0 + timedelta(hours=4)) == [(0, 2), (0, 3)]
    assert len(offsets(lake, since=T0 + timedelta(hours=28))) == 2
    assert len(offsets(lake, until=T0)) == 0


def test_replay_gives_events_and_passes_over_what_cannot_be_read(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    erasure = Erasure.of("ann", requested_by="operator", at=T0)
    rows = [record(0, value=erasure.encode(), topic=ERASURES.name), record(1, value=b"?", topic=ERASURES.name)]
    lake.write(ERASURES, rows)
    events: Sequence[Event] = list(lake.replay(ERASURES))
    assert events == [erasure]


def test_times_no_calendar_knows_are_kept_within_it(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.write(EPISODES, [Record(EPISODES.name, 0, 0, -1, None, b"a"), Record(EPISODES.name, 0, 1, 1 << 62, None, b"b")])
    assert [each.value for each in lake.records(EPISODES)] == [b"a", b"b"]


def test_a_place_that_cannot_be_opened_is_a_setting_to_change() -> None:
    with pytest.raises(ConfigError, match=r"lake\.uri"):
        Lake("nonsense://x")


def test_the_file_is_plain_parquet_for_other_tools(tmp_path: Path) -> None:
    (written,) = Lake(str(tmp_path)).write(EPISODES, [record(0), record(1)])
    table = pyarrow.parquet.read_table(written.path, partitioning=None)
    assert table.column_names[:6] == ["offset", "timestamp", "key", "value", "partition", "invalid_reason"]
    assert table.column("timestamp")[0].as_py() == T0


def test_what_waits_is_due_by_rows_by_age_and_by_memory() -> None:
    waiting = WriteBuffer(flush_rows=3, flush_s=10, flush_bytes=1000)
    waiting.add([record(0), record(0, partition=1)], now=0)
    waiting.add([record(0, topic=ERASURES.name)], now=5)
    assert waiting.due(9) == []
    assert waiting.due(10) == [EPISODES.name]
    waiting.add([record(1)], now=9)
    assert waiting.due(9) == [EPISODES.name]
    waiting.add([record(1, topic=ERASURES.name, value=b"x" * 1000)], now=9)
    assert waiting.due(9) == [EPISODES.name, ERASURES.name]
    assert waiting.rows == 5
    waiting.drop((EPISODES.name, 0))
    assert waiting.rows == 3
    assert list(waiting.of(EPISODES.name)) == [(EPISODES.name, 1)]
    waiting.drop((EPISODES.name, 1))
    assert waiting.topics() == [ERASURES.name]


def test_old_days_go_and_the_place_to_go_on_stays(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for day in range(4):
        lake.write(EPISODES, [record(2 * day, hours=24 * day), record(2 * day + 1, hours=24 * day)])
    lake.write(EPISODES, [record(0, partition=1)])
    assert lake.prune(EPISODES, date(2026, 1, 3)) == 2
    assert offsets(lake) == [(0, 4), (0, 5), (0, 6), (0, 7), (1, 0)]
    assert lake.positions(EPISODES) == {0: 8, 1: 1}
    assert lake.prune(EPISODES, date(2027, 1, 1)) == 1
    assert lake.positions(EPISODES) == {0: 8, 1: 1}
    assert lake.prune(ERASURES, date(2027, 1, 1)) == 0
