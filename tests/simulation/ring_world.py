"""Join, lake and the learner's feed on one simulated log, each with a disk of its own, and people who ask to be forgotten."""

import base64
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from typing import Any

import pyarrow.parquet

from infra.operate.erasure_certificate import Certificate, certificate
from learner.ring.labelled_answers import LabelledAnswer
from learner.ring.learner_inputs import LogFeed
from learner.settings import LearnerSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import Erasure
from streams.core.part_context import PartContext
from streams.core.topics import DEAD_LETTERS, ERASURES, LABELS, TOPICS, Topic
from streams.erasure.forgotten_people import Forgotten, record_without
from streams.kafka import Producer, Record
from streams.lake.compaction import Compactor
from streams.lake.lake_session import LakeSession
from streams.lake.lake_settings import LakeSettings
from streams.lake.parquet_lake import Lake
from tests.simulation.join_world import MACHINES, TURNS, JoinWorld, Machine
from tests.support.dying_disk import DyingDisk
from tests.support.simulated_clients import at, producer
from tests.support.simulated_log import Place

LAKE, LEARNER = "lake", "learner"
FEED = LearnerSettings(prompts_needed=1, thumb_weight=1.0)


class StoringPart(Machine):
    """The lake's process, or the learner's: it reads the whole log without a group."""

    def let_go(self) -> None:
        self.session = None


class FeedSession:
    """What the learner's loop does with its feed: it reads, and saves from time to time."""

    def __init__(self, context: PartContext, sending: Producer) -> None:
        self._state, self._clock = context.state, context.clock
        self.feed, self._turns = LogFeed(FEED, context, sending, "f" * 64), 0

    def turn(self) -> None:
        self.feed.read()
        self._turns += 1
        if self._turns % 3 == 0:
            self.feed.save()
        for path in self._state.glob("*.json"):
            os.utime(path, (self._clock.now().timestamp(),) * 2)  # files are of the log's time, as all else

    def close(self) -> None:
        self.feed.close()


@dataclass
class RingWorld(JoinWorld):
    """A JoinWorld with a lake and a learner's feed."""

    compact_files: int = 3
    ever: dict[tuple[str, int, int], Record] = field(default_factory=dict)
    """Every record that there ever was on the log."""
    excused: set[tuple[str, int, int]] = field(default_factory=set)
    """Records that the log had deleted before the lake, on its present disk, had written them."""
    asked: list[tuple[Erasure, int]] = field(default_factory=list)
    """Erasures, and when they arrived on the log (ms)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        real = self.log.append
        self.patch.setattr(self.log, "append", lambda *given, **more: self._remember(real(*given, **more)))
        self.stores = {name: StoringPart(name, self.folder / name, self.clock) for name in (LAKE, LEARNER)}
        self.lake_uri = str(self.folder / LAKE / "lake")
        rename = Path.rename

        def renamed(path: Path, target: Any) -> Any:
            if self.folder / LEARNER in path.parents:
                self._interrupt(LEARNER, "rename")  # a kill between any two of its files
            return rename(path, target)

        self.patch.setattr(Path, "rename", renamed)
        self.patch.setattr(Compactor, "advance", partialmethod(Compactor.advance, 0.0))  # one step a turn: all else happens between them

    def forget(self, person: str) -> None:
        """The person asks to be forgotten; afterwards a second passes."""
        erasure = Erasure.of(person, "operator", self.clock.now())
        self.asked.append((erasure, self.log.now_ms))
        self.people.publish(ERASURES, erasure)
        self.clock.advance(seconds=1)

    def start_store(self, name: str, disk: str = "kept", dies_at: int | None = None, when: str = "before") -> None:
        """Start lake or feed where it does not run.

        ``disk``: ``kept``, ``empty``, or ``old``: that of the last back-up. ``dies_at``: it dies at that change of the lake's disk.
        """
        part, copy = self.stores[name], self.folder / f"{name}-old"
        if part.session is not None:
            return
        if disk != "kept":
            shutil.rmtree(part.disk, ignore_errors=True)
            if disk == "old" and copy.exists():
                shutil.copytree(copy, part.disk)
        part.disk.mkdir(exist_ok=True)
        if name == LAKE and disk != "kept":
            self._excuse_deleted()
        context = PartContext(at(name), ArtifactStore(str(self.folder / "artifacts")), "default", self.folder, part.disk, clock=self.clock)
        self._living(part, lambda: setattr(part, "session", self._begun(name, context, dies_at, when)))

    def back_up(self, name: str) -> None:
        """Stop it, and copy its disk."""
        self.stop_store(name)
        shutil.rmtree(copy := self.folder / f"{name}-old", ignore_errors=True)
        if self.stores[name].disk.exists():
            shutil.copytree(self.stores[name].disk, copy)

    def stop_store(self, name: str) -> None:
        if (session := self.stores[name].session) is not None:
            session.close()
        self.stores[name].let_go()

    def turn_store(self, name: str) -> None:
        """One turn of its loop."""
        part = self.stores[name]
        if part.session is not None:
            self._living(part, part.session.turn)

    def pass_time(self, hours: float) -> None:
        super().pass_time(hours)
        self._excuse_deleted()

    def settle(self) -> None:
        """Until all that is on the log is joined, in the lake and known to the learner, and every erasure has its whole certificate."""
        self.planned.clear()
        for _ in range(8):
            super().settle()
            for name in self.stores:
                self.start_store(name)
            self._drain()
            newest = {erasure.person: erasure for erasure, _ in self.asked}.values()  # the topics are compacted by person
            if all(self.certificate(erasure).complete for erasure in newest):
                return
        raise AssertionError([self.certificate(erasure).waiting for erasure in newest])

    def certificate(self, erasure: Erasure) -> Certificate:
        return certificate(at("operator"), "default", erasure)

    @property
    def forgotten(self) -> Forgotten:
        made = Forgotten()
        for erasure, arrived_ms in self.asked:
            made.add(erasure, arrived_ms)
        return made

    def check_lake(self) -> None:
        """Each row of the log is in the lake once, as it came or as an erasure left it; and as often for readers who know nothing of the lake."""
        lake, forgotten = Lake(self.lake_uri), self.forgotten
        for topic in TOPICS:
            rows = {(record.partition, record.offset): record for record in lake.records(topic)}
            plain = [place for place, _ in self._plain_rows(lake, topic)]
            assert sorted(plain) == sorted(rows), f"{topic.short_name}: rows by name and rows as they lie there differ"
            ends = lake.positions(topic)
            for (name, partition, offset), record in self.ever.items():
                if name != topic.name or offset >= ends.get(partition, 0) or (name, partition, offset) in self.excused:
                    continue
                assert (partition, offset) in rows, f"{name}/{partition}/{offset} is not in the lake, which goes on at {ends[partition]}"
                left = record_without(record, forgotten, self.settings)
                told = rows[partition, offset]
                assert (told.key, told.timestamp_ms) == (record.key, record.timestamp_ms)
                assert told.value == left.value or (topic is LABELS and left is not record), f"{name}/{partition}/{offset}"

    def stored_texts(self) -> Iterator[tuple[str, str]]:
        """All that lake, learner and the newest labels hold, as text, and where."""
        lake = Lake(self.lake_uri)
        for topic in TOPICS:
            for place, row in self._plain_rows(lake, topic):
                yield f"lake {topic.short_name} {place}", str(row)
                if topic is DEAD_LETTERS and row["record_base64"]:
                    yield f"lake {topic.short_name} {place}", base64.b64decode(row["record_base64"]).decode(errors="replace")
        for path in sorted(self.stores[LEARNER].disk.rglob("*")):
            if path.is_file():
                yield f"learner {path.name}", path.read_text(errors="replace")
        for name, label in self.labels().items():
            yield f"label {name}", str(label)

    def check_feed(self) -> None:
        """The learner's answers are those of the labels that stand."""
        feed: LogFeed = self.stores[LEARNER].session.feed
        standing = {name for name, label in self.labels().items() if LabelledAnswer.of(label) is not None}
        assert set(feed.labelled._answers) == standing

    def _begun(self, name: str, context: PartContext, dies_at: int | None, when: str) -> Any:
        if name == LEARNER:
            return FeedSession(context, producer(LEARNER))
        settings = LakeSettings(uri=self.lake_uri, flush_rows=4, flush_s=20, compact_every_s=30, compact_files=self.compact_files)
        lake = Lake(self.lake_uri, batch_rows=3)
        DyingDisk.under(lake, dies_at, when)
        return LakeSession(settings, context, lake, self.settings)

    def _drain(self) -> None:
        """Turn until lake and feed have read and written everything, and none of them died at that."""
        quiet = 0
        for _ in range(TURNS):
            self.clock.advance(seconds=40)
            for name in self.stores:
                self.start_store(name)
                self.turn_store(name)
            for name in MACHINES:
                self.turn(name)
            quiet = quiet + 1 if all(map(self._up_to_date, self.stores)) else 0
            if quiet >= 2:
                return
        raise AssertionError("lake or learner stand still")

    def _up_to_date(self, name: str) -> bool:
        session = self.stores[name].session
        if session is None:
            return False
        if name == LAKE:
            return session._consumer.measure_lag() == 0 and session._waiting.rows == 0 and not session._compactor._due
        return bool(session.feed._consumer.measure_lag() == 0)

    def _plain_rows(self, lake: Lake, topic: Topic[Any]) -> Iterator[tuple[Place, dict[str, Any]]]:
        for file in lake.files(topic):
            for row in pyarrow.parquet.read_table(file.path, partitioning=None).to_pylist():
                yield (file.partition, row["offset"]), row

    def _excuse_deleted(self) -> None:
        """What the log has deleted and the lake has not: no lake can have it any more."""
        lake = Lake(self.lake_uri) if os.path.exists(self.lake_uri) else None
        for topic in TOPICS:
            held = {(record.partition, record.offset) for record in self.log.records(topic)}
            ends = lake.positions(topic) if lake is not None else {}
            for name, partition, offset in self.ever:
                if name == topic.name and offset >= ends.get(partition, 0) and (partition, offset) not in held:
                    self.excused.add((name, partition, offset))

    def _remember(self, record: Record) -> Record:
        self.ever[record.topic, record.partition, record.offset] = record
        return record
