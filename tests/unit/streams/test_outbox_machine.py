"""The outbox as a machine: Kafka comes and goes, the disk fills, the process is killed; what went in comes out in order, or is told."""

import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams.core.metrics import Metrics
from streams.core.topics import FEEDBACK
from streams.outbox.outbox import Outbox
from streams.outbox.outbox_settings import OutboxSettings
from tests.unit.streams.test_outbox import Broker, ids, thumb

BOUND = 6


class Stepped(Outbox):
    """An outbox whose threads are the test's steps."""

    def _start(self) -> Sequence[Thread]:
        return ()


class Machine(RuleBasedStateMachine):
    """Every event is in one place: delivered, waiting, refused, dropped or lost; the counters say how many of each."""

    @initialize(fsync=st.sampled_from(("off", "batch", "each")), when_full=st.sampled_from(("keep_oldest", "keep_newest")))
    def begin(self, fsync: str, when_full: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.settings = OutboxSettings.model_validate({"outbox_events": BOUND, "outbox_fsync": fsync, "outbox_when_full": when_full})
        self.broker, self.place, self.number = Broker(), 0, 0
        self.accepted: list[str] = []
        self.refused = self.dropped = self.lost = 0
        self._open()

    def _open(self) -> None:
        self.metrics = Metrics()
        self.outbox = Stepped(Path(self.folder.name) / str(self.place) / "outbox", self.broker.connect, self.metrics, "actor", self.settings)
        self.lost += self.outbox.lost

    def _counted(self) -> int:
        return int(sum(self.metrics.value("tidemill_outbox_dropped_total", reason=reason) for reason in ("full", "old", "disk")))

    @rule()
    def an_event_comes(self) -> None:
        self.number += 1
        (self.accepted.append(f"fb-{self.number}") if self.outbox.put(FEEDBACK, thumb(self.number)) else self._refuse())

    def _refuse(self) -> None:
        self.refused += 1

    @rule()
    def it_goes_to_disk(self) -> None:
        self.outbox._spool_fresh()

    @rule()
    def it_goes_to_kafka(self) -> None:
        self.outbox._send_oldest()

    @rule()
    def kafka_goes_or_comes(self) -> None:
        (self.broker.away.clear if self.broker.away.is_set() else self.broker.away.set)()

    @rule()
    def the_disk_fills_or_has_room(self) -> None:
        database: sqlite3.Connection = self.outbox._spool._database
        full = database.execute("PRAGMA query_only").fetchone()[0]
        database.execute(f"PRAGMA query_only = {'OFF' if full else 'ON'}")  # every write is refused, as on a full disk

    @rule()
    def it_is_killed_and_starts_again(self) -> None:
        self.dropped += self._counted()
        in_memory = len(self.outbox._fresh)
        before = self.lost
        old = Path(self.folder.name) / str(self.place)
        self.place += 1
        shutil.copytree(old, Path(self.folder.name) / str(self.place), ignore=shutil.ignore_patterns("*-shm"))
        self.outbox._spool.close()
        self._open()
        assert self.lost - before == in_memory, "it says how many a kill took"

    @precondition(lambda self: self.outbox is not None)
    @invariant()
    def everything_is_somewhere(self) -> None:
        came = list(dict.fromkeys(ids(self.broker)))
        assert came == [name for name in self.accepted if name in set(came)], "in the order in which they were put"
        waiting = {row.value for row in self.outbox._spool.oldest(self.outbox._sent, 1000, 1 << 20)} | {w.value for w in self.outbox._fresh}
        undelivered = len(waiting - set(self.broker.records))
        gone = self.dropped + self._counted() + self.lost
        assert len(came) + undelivered <= len(self.accepted)
        assert self.number <= len(came) + undelivered + gone, "nothing is gone that was not counted"
        assert len(self.outbox._fresh) <= BOUND
        assert self.outbox._spool.events <= BOUND
        assert self.outbox.depth == self.outbox._spool.events + len(self.outbox._fresh)
        if self.settings.outbox_fsync == "each":
            assert self.lost == 0

    def teardown(self) -> None:
        self.outbox._spool.close()
        self.folder.cleanup()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
