"""Clocks of all parts that jump by days, by libfaketime (Debian's package of that name); the broker's stays."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra.local.embedded_broker import Broker, BrokerSettings
from tests.chaos.child import kafka_at
from tests.chaos.ring import Ring

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def faked(clock: Path) -> dict[str, str]:
    """For a process whose time is what the file says."""
    assert LIBRARY is not None, "libfaketime is missing: apt-get install libfaketime"
    clock.write_text("+0")
    faking = {"LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return {**faking, "PYTHONPATH": str(Path(__file__).with_name("faked"))}


def test_a_clock_that_jumps_expires_nothing_and_loses_nothing(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    with (
        Broker(BrokerSettings(), tmp_path / "broker") as broker,
        Ring(tmp_path, kafka_at(broker.bootstrap_servers), episodes=300, per_second=60, environment=faked(clock)) as ring,
    ):
        ring.start()
        time.sleep(6)
        for days in (10, -10, 0, 400, -1):
            clock.write_text(f"{days:+}d")
            time.sleep(ring.chance.uniform(1, 2))
            if days == 400:
                ring.kill("streams-a", "actor-a")
                ring.start("streams-a", "actor-a")
                believed, until = f"{datetime.now(UTC) + timedelta(days=400):%Y-}", time.monotonic() + 60
                while believed not in ring.children["streams-a"].log.read_text():
                    assert time.monotonic() < until, "the clock that jumped is not believed"
                    time.sleep(0.2)
            ring.books()
        ring.settle()
