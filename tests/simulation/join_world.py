"""Machines that join on a simulated log, in the log's own time: they are killed anywhere, sleep and come back, and lose their disks."""

import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import Unavailable
from streams.core.events import Episode, Feedback, Label
from streams.core.part_context import PartContext
from streams.core.topics import DEAD_LETTERS, EPISODES, FEEDBACK, LABELS
from streams.join.join_session import GROUP, JoinSession
from streams.join.join_settings import JoinSettings
from streams.join.ledger import Ledger, read_ledger
from streams.kafka import Producer
from tests.support.simulated_clients import at, fall_silent, install, producer
from tests.support.simulated_log import Killed, SimulatedClock, SimulatedLog

BEGIN = datetime(2026, 3, 2, 9, tzinfo=UTC)
MACHINES = ("north", "south", "west")
TURNS = 400
"""So many turns suffice to read everything; more means that the join stands still."""


@dataclass
class Machine:
    """One process of the join, with a disk of its own."""

    name: str
    disk: Path
    clock: Any
    session: Any = None

    def let_go(self) -> None:
        """The process is gone: what the kernel closes for it is closed."""
        for part in self.session.parts.values() if self.session is not None else ():
            part.close()
        self.session = None


@dataclass
class JoinWorld:
    """A log, its clock, and the machines."""

    patch: pytest.MonkeyPatch
    folder: Path
    seed: int
    settings: JoinSettings
    retention_days: dict[str, float] = field(default_factory=dict)
    cooperative: bool = False

    def __post_init__(self) -> None:
        self.planned: dict[str, tuple[int, Callable[[], None]]] = {}
        """By machine: after so many of its calls to Kafka, what happens to it."""
        self._at_work: set[str] = set()
        self.chance, self.clock = random.Random(self.seed), SimulatedClock(BEGIN)
        retention = {topic: int(days * 86_400_000) for topic, days in self.retention_days.items()}
        self.log = SimulatedLog(clock=self.clock, chance=self.chance, cooperative=self.cooperative, retention_ms=retention, interrupt=self._interrupt)
        install(self.patch, self.log)
        self.people: Producer = producer("people")
        self.machines = {
            name: Machine(name, self.folder / name, self.clock.skewed(timedelta(hours=hours)))
            for name, hours in zip(MACHINES, (0, -30, 400), strict=True)
        }
        self.letters: dict[tuple[str, int, int], str] = {}
        """The reason of every dead letter there ever was, by the place of its record: their topic is emptied in time."""
        self.sent: dict[tuple[str, int, int], Episode | Feedback] = {}
        """What people published, by place."""
        self.arrived: dict[tuple[str, int, int], datetime] = {}
        self.orphaned: set[tuple[str, int, int]] = set()
        self.lost: set[tuple[str, int, int]] = set()
        """Records that retention deleted before any join had committed them, and feedback that it deleted while a join still had it waiting: a
        join that then starts without that disk cannot know of it (docs/concepts/no-loss.md, limits)."""

    def publish(self, event: Episode | Feedback) -> None:
        """An event reaches the log now."""
        place = self.people.publish(EPISODES if isinstance(event, Episode) else FEEDBACK, event)
        self.sent[place.topic, place.partition, place.offset] = event
        self.arrived[place.topic, place.partition, place.offset] = self.clock.now()

    def pass_time(self, hours: float) -> None:
        """Time passes, and the log's cleaner has its turn."""
        self.clock.advance(hours=hours)
        before = {place: held.start for place, held in self.log.partitions.items()}
        self._note_letters()
        self.log.clean()
        committed = self.log.committed(GROUP)
        for (topic, number), held in self.log.partitions.items():
            if topic in (EPISODES.name, FEEDBACK.name):
                first = max(before[topic, number], committed.get((topic, number), 0))
                self.lost |= {(topic, number, offset) for offset in range(first, held.start)}
                self._note_unread(range(before[topic, number], held.start), topic, number, committed)
                self._note_waiting(range(before[topic, number], held.start), topic, number)

    def start(self, name: str, disk: str = "kept") -> None:
        """Start the machine's join, where none runs. ``disk``: ``kept``, ``empty``, or ``old``: as it was at an earlier start."""
        machine, copy = self.machines[name], self.folder / f"{name}-old"
        if machine.session is not None:
            return
        if disk != "kept":
            shutil.rmtree(machine.disk, ignore_errors=True)
            if disk == "old" and copy.exists():
                shutil.copytree(copy, machine.disk)
        else:
            shutil.rmtree(copy, ignore_errors=True)
            if machine.disk.exists():
                shutil.copytree(machine.disk, copy)
        context = PartContext(at(name), ArtifactStore(str(self.folder / "artifacts")), "default", self.folder, machine.disk, clock=machine.clock)
        self._living(machine, lambda: setattr(machine, "session", JoinSession(self.settings, context)))

    def turn(self, name: str) -> None:
        """One turn of its loop."""
        machine = self.machines[name]
        if machine.session is not None:
            self._living(machine, machine.session.turn)

    def stop(self, name: str) -> None:
        """In good order."""
        machine = self.machines[name]
        if machine.session is not None:
            self._living(machine, machine.session.close)
            machine.session = None

    def kill_after(self, name: str, calls: int) -> None:
        """The machine dies at so many calls to Kafka from now."""

        def die() -> None:
            raise Killed

        self.planned[name] = (calls, die)

    def sleep_after(self, name: str, calls: int, others_turns: int) -> None:
        """The machine stands still in the middle of its work; the others take over, and then it goes on as if nothing had been."""

        def sleep() -> None:
            fall_silent(self.log, name)
            self.clock.advance(seconds=self.log.settings.session_timeout_s + 1)
            for _ in range(others_turns):
                for other in MACHINES:
                    if other != name:
                        self.turn(other)

        self.planned[name] = (calls, sleep)

    def settle(self) -> None:
        """Until all that is on the log is folded and told: with whoever runs, or one that starts with an empty disk."""
        self.planned.clear()
        for made in self.log.producers:
            made.deliver()
        if all(machine.session is None for machine in self.machines.values()):
            self.start(MACHINES[0])
        quiet = 0
        for _ in range(TURNS):
            self.clock.advance(seconds=self.settings.expire_every_s)
            before = (self.log.committed(GROUP), len(self.log.records(LABELS)), len(self.log.records(DEAD_LETTERS)))
            for name in MACHINES:
                self.turn(name)
            after = (self.log.committed(GROUP), len(self.log.records(LABELS)), len(self.log.records(DEAD_LETTERS)))
            quiet = quiet + 1 if before == after and self._all_read() else 0
            if quiet >= 6:  # a fetch may bring nothing of a partition several times in a row
                self._note_letters()
                return
        raise AssertionError(f"the join stands still at {self.log.committed(GROUP)}")

    def ledger(self) -> Ledger:
        """As an operator sees it."""
        return read_ledger(at("operator"))

    def labels(self) -> dict[str, Label]:
        """The newest label of each episode."""
        found: dict[str, Label] = {}
        for record in self.log.records(LABELS):
            name = (record.key or b"").decode()
            found.pop(name, None)
            if record.value is not None:
                found[name] = LABELS.decode(record.value)
        return found

    def _note_unread(self, deleted: Iterable[int], topic: str, number: int, committed: dict[tuple[str, int], int]) -> None:
        """Feedback that no join had read when the log lost its episode: who takes over with an empty disk cannot know the episode."""
        for offset in deleted if topic == EPISODES.name else ():
            for place, event in self.sent.items():
                unread = place[:2] == (FEEDBACK.name, number) and place[2] >= committed.get(place[:2], 0)
                if unread and (episode := self.sent.get((topic, number, offset))) is not None and event.episode_id == episode.episode_id:
                    self.orphaned.add(place)

    def _note_waiting(self, deleted: Iterable[int], topic: str, number: int) -> None:
        joined = {name for label in self.labels().values() for name in label.feedback_ids} if topic == FEEDBACK.name and deleted else set[str]()
        for place in ((topic, number, offset) for offset in deleted):
            event = self.sent.get(place)
            if isinstance(event, Feedback) and place not in self.letters and event.feedback_id not in joined:
                self.lost.add(place)

    def _all_read(self) -> bool:
        ends = {place: held.end for place, held in self.log.partitions.items() if place[0] in (EPISODES.name, FEEDBACK.name) and held.records}
        committed = self.log.committed(GROUP)
        return all(committed.get(place, 0) >= end for place, end in ends.items())

    def _note_letters(self) -> None:
        for record in self.log.records(DEAD_LETTERS):
            letter = DEAD_LETTERS.decode(record.value)
            self.letters[letter.source_topic, letter.source_partition, letter.source_offset] = letter.reason

    def _interrupt(self, member: str, operation: str) -> None:
        if member in self.planned:
            left, happens = self.planned.pop(member)
            if left > 0:
                self.planned[member] = (left - 1, happens)
            else:
                happens()

    def _living(self, machine: Machine, work: Callable[[], None]) -> None:
        """Do its work. A kill, or a failure that ends the session, leaves the disk as it is; the group hears of it in time."""
        if machine.name in self._at_work:
            return  # it sleeps in the middle of a turn
        self._at_work.add(machine.name)
        try:
            work()
        except Killed:
            fall_silent(self.log, machine.name)
            self._leave_behind(machine)
        except Unavailable:
            if machine.session is not None:
                machine.session.close()
            machine.session = None
        finally:
            self._at_work.discard(machine.name)

    def _leave_behind(self, machine: Machine) -> None:
        """What is left of a process that was killed: its disk, and what was on its way to Kafka, which arrives now, late or never."""
        machine.let_go()
        for made in [each for each in self.log.producers if each.member == machine.name]:
            fate = self.chance.choice(("now", "late", "never"))
            if fate == "now":
                made.deliver()
            if fate != "late":
                self.log.producers.remove(made)
