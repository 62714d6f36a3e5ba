"""Small files become larger ones: nothing is lost or doubled, wherever a kill comes, whoever reads meanwhile, and whoever is erased."""

import itertools
import math
import random
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import partialmethod
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.clock import FixedClock
from streams.core.events import Episode, Erasure, Message
from streams.core.part_context import PartContext
from streams.core.topics import EPISODES, ERASURES
from streams.join.join_settings import JoinSettings
from streams.kafka import KafkaSettings, Record
from streams.lake.compaction import Compactor, due_runs
from streams.lake.lake_erasure import LakeErasure
from streams.lake.lake_file import LakeFile, covered
from streams.lake.lake_layout import RECORD, LakeLayout
from streams.lake.lake_session import LakeSession
from streams.lake.lake_settings import LakeSettings
from streams.lake.parquet_lake import Lake
from tests.support.dying_disk import DyingDisk
from tests.support.simulated_clients import at, install, producer
from tests.support.simulated_log import Killed, SimulatedLog

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
T0_MS = int(T0.timestamp() * 1000)
SETTINGS = LakeSettings(compact_files=3, compact_bytes=1 << 20)
SHE = "ann-the-forgotten"


def record(offset: int, days: float = 0, user: str = "bob") -> Record:
    asked = (Message(role="user", content=f"question {offset} of {user}"),)
    event = Episode(episode_id=f"ep-{offset}", user_id=user, messages=asked, started_at=T0, ended_at=T0)
    return Record(EPISODES.name, 0, offset, T0_MS + int(days * 86_400_000), event.key.encode(), event.encode())


def compactor(lake: Lake, days: float = 0, settings: LakeSettings = SETTINGS) -> Compactor:
    clock = FixedClock(T0 + timedelta(days=days))
    return Compactor(lake, settings, PartContext(KafkaSettings(), ArtifactStore("unused"), "default", Path(), Path(), clock=clock))


def merge_all(merging: Compactor) -> None:
    while merging.advance(0.0):
        pass


def plainly(lake: Lake) -> list[tuple[int, bytes | None]]:
    """Each row of each file, as a reader sees them that knows nothing of the lake's names."""
    tables = [pyarrow.parquet.read_table(file.path, partitioning=None).to_pylist() for file in lake.files(EPISODES)]
    return sorted((row["offset"], row["value"]) for table in tables for row in table)


def written(folder: Path, sizes: Sequence[int], days: Sequence[float] = ()) -> tuple[Lake, list[Record]]:
    """A lake with files of so many records, and the records."""
    lake, made = Lake(str(folder), batch_rows=2), []
    for number, size in enumerate(sizes):
        batch = [record(len(made) + n, days[number] if number < len(days) else 0) for n in range(size)]
        lake.write(EPISODES, batch)
        made += batch
    return lake, made


def test_small_files_of_a_day_become_one_that_is_named_by_all_their_offsets(tmp_path: Path) -> None:
    lake, made = written(tmp_path, [2, 3, 1, 2])
    merging = compactor(lake)
    merge_all(merging)
    assert [Path(file.path).name for file in lake.files(EPISODES)] == ["000-000000000000-000000000007.parquet"]
    assert list(lake.records(EPISODES)) == made
    assert lake.positions(EPISODES) == {0: 8}
    assert merging._metrics.value("tidemill_lake_compactions_total", topic=EPISODES.name) == 1
    merging.abandon()
    merge_all(merging)
    assert merging._metrics.value("tidemill_lake_files", topic=EPISODES.name) == 1
    assert merging._metrics.value("tidemill_lake_compactions_total", topic=EPISODES.name) == 1


def test_files_of_another_day_in_between_are_no_neighbours(tmp_path: Path) -> None:
    lake, made = written(tmp_path, [1] * 7, days=[0, 0, 0, 1, 0, 0, 0])  # a producer's clock jumped
    merge_all(compactor(lake, days=9))
    assert [(file.day.day, file.first, file.last) for file in lake.files(EPISODES)] == [(1, 0, 2), (2, 3, 3), (1, 4, 6)]
    assert list(lake.records(EPISODES)) == made
    assert plainly(lake) == [(each.offset, each.value) for each in made]


def test_today_waits_for_enough_files_and_a_day_that_is_over_does_not(tmp_path: Path) -> None:
    lake, _ = written(tmp_path, [1, 1])
    merge_all(compactor(lake))
    assert len(lake.files(EPISODES)) == 2
    merge_all(compactor(lake, days=0.52))  # half an hour after midnight
    assert len(lake.files(EPISODES)) == 2
    merge_all(compactor(lake, days=0.55))
    assert len(lake.files(EPISODES)) == 1


def test_merging_files_of_the_older_layout_gives_them_columns(tmp_path: Path) -> None:
    lake, made = written(tmp_path, [2, 2, 2])
    old = lake.files(EPISODES)[1].path
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(old, columns=RECORD.names, partitioning=None).cast(RECORD), old)
    merge_all(compactor(lake))
    (file,) = lake.files(EPISODES)
    table = pyarrow.parquet.read_table(file.path, partitioning=None)
    assert table.schema.equals(LakeLayout(EPISODES).schema)
    assert table["user_id"].to_pylist() == ["bob"] * 6
    assert list(lake.records(EPISODES)) == made


def test_a_damaged_file_is_left_where_it_is_and_its_neighbours_too(tmp_path: Path) -> None:
    lake, made = written(tmp_path, [1] * 3, days=[0] * 3)
    lake.write(EPISODES, [record(3 + n, days=1) for n in range(1)])
    for n in range(4, 7):
        lake.write(EPISODES, [record(n, days=1)])
    damaged = Path(lake.files(EPISODES)[1].path)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    merging = compactor(lake, days=1)
    merge_all(merging)
    assert [(file.first, file.last) for file in lake.files(EPISODES)] == [(0, 0), (1, 1), (2, 2), (3, 6)]
    merging.abandon()
    merge_all(merging)
    assert damaged.exists()
    assert made[1].offset == 1


def test_a_full_disk_ends_a_merge_and_neither_the_lake_nor_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, made = written(tmp_path, [1] * 4)
    merging = compactor(lake)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        merge_all(merging)
    assert merging._metrics.value("tidemill_lake_failures_total") == 1
    assert list(tmp_path.rglob("*.tmp")) == []
    assert list(lake.records(EPISODES)) == made
    merging.abandon()
    merge_all(merging)
    assert len(lake.files(EPISODES)) == 1


stories = st.lists(st.sampled_from(["write one", "write three", "write hers", "next day", "merge", "erase", "merge"]), min_size=3, max_size=14)


class KilledLake:
    """A lake that is written, merged and rewritten for an erased person, on a disk where its process dies; after each death it starts again."""

    def __init__(self, folder: Path, dies_at: int, when: str) -> None:
        self._folder, self.made, self.days, self.erased_up_to, self.written = folder, list[Record](), 0, -1, 0
        self.lake = Lake(str(folder / "lake"), batch_rows=2)
        self.disk = DyingDisk.under(self.lake, dies_at, when)

    def do(self, what: str) -> None:
        if what.startswith("write"):
            users = {"write one": ["bob"], "write three": ["bob", SHE, "cy"], "write hers": [SHE]}[what]
            batch = [record(len(self.made) + n, self.days, user) for n, user in enumerate(users)]
            self.written = len(self.made)
            self.made += batch
            self._again_until_done(lambda: self._write(batch))
            self.written = len(self.made)
        elif what == "next day":
            self.days += 1
        elif what == "merge":
            self._again_until_done(lambda: merge_all(compactor(self.lake, self.days)))
        else:
            self.erased_up_to = len(self.made)
            self._again_until_done(self._erase)

    def _write(self, batch: list[Record]) -> None:
        start = self.lake.positions(EPISODES).get(0, 0)
        if left := [each for each in batch if each.offset >= start]:
            self.lake.write(EPISODES, left)

    def _erase(self) -> None:
        asked = Erasure.of(SHE, "operator", T0 + timedelta(days=self.days))
        LakeErasure(self.lake, ArtifactStore(str(self._folder / "artifacts")), JoinSettings()).erase(asked, T0_MS + self.days * 86_400_000, T0)

    def _again_until_done(self, work: Any) -> None:
        try:
            work()
        except Killed:
            self.lake = Lake(str(self._folder / "lake"), batch_rows=2)  # another process, on the same files
            self.holds(after_a_kill=True)
            self.lake.tidy(EPISODES)
            self.holds(after_a_kill=True)
            work()

    def holds(self, after_a_kill: bool = False) -> None:
        """Each record once, whatever was killed; of hers nothing, once she is erased. After a kill a batch may be missing whole, and some of what
        is to be erased may be there."""
        found = list(self.lake.records(EPISODES))
        assert [each.offset for each in found] == list(range(self.lake.positions(EPISODES).get(0, 0)))
        assert len(found) in ((len(self.made), self.written) if after_a_kill else (len(self.made),))
        for kept, made in zip(found, self.made, strict=False):
            hers = SHE.encode() in (made.value or b"") and made.offset < self.erased_up_to
            assert (kept.value is None and hers) or (kept.value == made.value and (after_a_kill or not hers))


@given(story=stories, dies_at=st.integers(1, 40), when=st.sampled_from(["before", "within", "after"]))
def test_a_kill_between_any_two_steps_loses_and_doubles_nothing(story: list[str], dies_at: int, when: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        killed = KilledLake(Path(folder), dies_at, when)
        for what in story:
            killed.do(what)
            killed.holds()
        for what in ("next day", "next day", "merge", "erase"):
            killed.do(what)
            killed.holds()
        assert [offset for offset, _ in plainly(killed.lake)] == list(range(len(killed.made)))
        assert len(killed.lake.files(EPISODES)) == len({each.timestamp_ms for each in killed.made}), "one file a day"
        assert list((Path(folder) / "lake").rglob("*.tmp")) == []
        everything = b"".join(path.read_bytes() for path in (Path(folder) / "lake").rglob("*") if path.is_file())
        assert SHE.encode() not in everything


def test_every_change_of_a_merge_is_a_place_to_die(tmp_path: Path) -> None:
    """The property above reaches them all: one story, killed at each of its changes in each of the three ways."""
    story = ["write three", "write one", "write hers", "merge", "erase", "write one", "next day", "next day", "merge"]
    changes = KilledLake(tmp_path / "whole", 0, "before")
    for what in story:
        changes.do(what)
    assert changes.disk.changes > 12
    for dies_at in range(1, changes.disk.changes + 1):
        for when in ("before", "within", "after"):
            killed = KilledLake(tmp_path / f"{dies_at}-{when}", dies_at, when)
            for what in story:
                killed.do(what)
                killed.holds()
            assert len(plainly(killed.lake)) == len(killed.made)


@given(sizes=st.lists(st.integers(1, 5), min_size=4, max_size=12), seed=st.integers(0, 1 << 30), readers=st.integers(1, 4))
def test_whoever_reads_while_files_are_merged_sees_each_row_once(sizes: list[int], seed: int, readers: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        lake, made = written(Path(folder), sizes)
        merging = compactor(lake, days=chance.choice([0, 2]))
        reading: list[tuple[Any, list[Record]]] = [(Lake(folder, batch_rows=2).records(EPISODES), []) for _ in range(readers)]
        busy = True
        while busy or any(len(found) < len(made) for _, found in reading):
            if chance.random() < 0.5:
                busy = merging.advance(0.0)
            source, found = chance.choice(reading)
            with suppress(StopIteration):
                for _ in range(chance.randint(1, 4)):
                    found.append(next(source))
        for source, found in reading:
            assert found + list(source) == made


def test_an_erasure_in_the_middle_of_a_merge_is_not_undone_by_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compactor, "advance", partialmethod(Compactor.advance, 0.0))  # one step a turn, as in a large merge
    log = install(monkeypatch, SimulatedLog(clock=(clock := FixedClock(T0))))
    context = PartContext(at("lake"), ArtifactStore(str(tmp_path / "artifacts")), "default", tmp_path, tmp_path, clock=clock)
    settings = LakeSettings(uri=str(tmp_path / "lake"), flush_rows=1, compact_files=4, compact_every_s=10)
    lake = Lake(str(tmp_path / "lake"))
    session = LakeSession(settings, context, lake, JoinSettings())
    for number in range(6):
        sent = record(number, user=SHE if number < 2 else "bob")
        log.append(EPISODES.name, 0, sent.key, sent.value)
        clock.advance(seconds=1)
        session.turn()
    while session._compactor._merge is None:
        clock.advance(seconds=2)
        session.turn()
    assert len(lake.files(EPISODES)) == 6
    producer().publish(ERASURES, Erasure.of(SHE, "operator", clock.now()))
    for _ in range(60):
        clock.advance(seconds=2)
        session.turn()
    session.close()
    assert len(lake.files(EPISODES)) == 1, "it was merged in the end"
    assert [each.value is None for each in lake.records(EPISODES)] == [True, True, False, False, False, False]


files = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([1, 1, 1, 2, 5, 30, 99, 101, 500])), max_size=40)


@given(shape=files, closed=st.booleans())
def test_what_is_due_are_neighbours_of_a_day_that_fit_together(shape: list[tuple[int, int]], closed: bool) -> None:
    day, found = date(2026, 1, 1), []
    for number, (partition, size) in enumerate(sorted(shape, key=lambda each: each[0])):
        found.append(LakeFile(f"{number}", day, partition, number, number, size))
    for _ in range(20):
        runs = due_runs(found, day + timedelta(days=closed), 4, 100)
        if not runs:
            break
        taken = [file for run in runs for file in run]
        assert len(set(taken)) == len(taken)
        for run in runs:
            assert [found.index(file) for file in run] == list(range(found.index(run[0]), found.index(run[0]) + len(run)))
            assert sum(file.size_bytes for file in run) <= 100
            assert len(run) >= (2 if closed else 4)
            assert len({file.partition for file in run}) == 1
            merged = LakeFile("m", day, run[0].partition, run[0].first, run[-1].last, sum(file.size_bytes for file in run))
            assert covered([merged, *run]) == list(run)
            found = [merged if file is run[0] else file for file in found if file not in run[1:]]
    else:
        raise AssertionError("it never ends")
    if closed:
        small = [(a, b) for a, b in itertools.pairwise(found) if a.partition == b.partition]
        assert not [pair for pair in small if pair[0].size_bytes + pair[1].size_bytes <= 100]


def test_a_row_is_written_again_a_few_times_only_however_many_files_there_are() -> None:
    """A file a minute for a day, looked at every ten minutes: bytes written again, by bytes that came."""
    day, settings, again, found = date(2026, 1, 1), LakeSettings(), 0, list[LakeFile]()
    for minute in range(1440):
        found.append(LakeFile("", day, 0, minute, minute, 40_000))
        if minute % 10 == 9:
            for run in due_runs(found, day, settings.compact_files, settings.compact_bytes):
                size = sum(file.size_bytes for file in run)
                again += size
                found = sorted({*found, LakeFile("", day, 0, run[0].first, run[-1].last, size)} - set(run), key=lambda file: file.first)
    assert len(found) < 100
    assert again / (1440 * 40_000) <= math.log2(settings.compact_bytes / 40_000)
