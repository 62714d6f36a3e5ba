"""The broker's own disk is full: Kafka stops, outboxes keep what comes, and with room made it goes on as if nothing had happened."""

import time
from contextlib import suppress
from pathlib import Path

import pytest

from infra.local.embedded_broker import Broker, BrokerSettings, free_port
from streams.core.errors import Unavailable
from tests.chaos.child import kafka_at
from tests.chaos.ring import Ring
from tests.chaos.small_disk import SmallDisk
from tests.support.running import wait_for


def test_a_full_disk_under_the_broker_is_waited_out(tmp_path: Path) -> None:
    with (
        SmallDisk(tmp_path / "broker" / "data", mib=96) as disk,
        Broker(BrokerSettings(port=free_port()), tmp_path / "broker") as broker,
        Ring(tmp_path, kafka_at(broker.bootstrap_servers), episodes=800, per_second=30) as ring,
    ):
        ring.start()
        time.sleep(ring.chance.uniform(5, 8))
        for killed in ((), tuple(ring.children)):
            ring.books()
            disk.fill()
            wait_for(lambda: not broker.running())  # Kafka gives up a disk that refuses a write; it was its only one
            with pytest.raises(Unavailable):
                ring.books()
            ring.await_outboxes()
            time.sleep(ring.chance.uniform(2, 5))
            assert [name for name, child in ring.children.items() if child.died()] == []
            ring.kill(*killed)  # what outboxes hold is on their own disks
            disk.make_room()
            broker.stop()
            broker.start()
            if killed:  # of no names, all are started
                ring.start(*killed)
            until = time.monotonic() + ring.chance.uniform(3, 6)
            while time.monotonic() < until:
                with suppress(Unavailable):  # the groups' coordinator is just coming back
                    ring.books()
        ring.settle()
