"""kill -9 of a publishing process at any moment: what is gone is at most what its policy allows, and the next start says how much."""

import random
import signal
import sys
import time
from pathlib import Path

import pytest

from infra.local.embedded_broker import free_port
from streams.outbox.sqlite_spool import Spool
from tests.chaos.child import SEED, Child, kafka_at
from tests.chaos.history import history, write
from tests.unit.streams.test_ledger import T0

KILLS = 4


@pytest.mark.parametrize("fsync", ["off", "batch", "each"])
def test_a_kill_takes_no_more_than_it_says(tmp_path: Path, fsync: str) -> None:
    chance, nobody = random.Random(SEED), kafka_at(f"127.0.0.1:{free_port()}")
    write(history(chance, 20_000, T0), tmp_path / "events")
    arguments = ("-m", "tests.chaos.publishing", nobody.model_dump_json(), str(tmp_path), str(tmp_path / "events"), "1e9", fsync)
    child, place = Child([sys.executable, *arguments], tmp_path / "log", {}), tmp_path / "place"

    def reached() -> int:
        return int(place.read_text() or "0") if place.exists() else 0

    for _ in range(KILLS):
        before, until = reached(), time.monotonic() + 60
        child.start()
        while reached() == before:
            assert time.monotonic() < until, child.log.read_text()[-2000:]
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        child.end(signal.SIGKILL)
    spool = Spool(tmp_path / "outbox.sqlite", synced=False)
    told = [int(line) for line in (tmp_path / "lost").read_text().split()] if (tmp_path / "lost").exists() else []
    lost = sum(told) + spool.lost
    assert reached() <= spool.events + lost <= reached() + KILLS, "an event whose putting was not yet written down comes twice, none is gone untold"
    assert lost < reached()
    if fsync == "each":
        assert lost == 0
    print(f"{fsync}: {reached()} events, {KILLS} kills took {lost}")
    spool.close()
