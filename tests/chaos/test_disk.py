"""A disk that takes no more: what waits, waits, and goes on when there is room."""

import time
from pathlib import Path

import psutil

from infra.local.embedded_broker import Broker, BrokerSettings
from tests.chaos.child import kafka_at
from tests.chaos.ring import Ring


def limit(pid: int, size_bytes: int) -> None:
    """The kernel refuses every write of that process beyond so many bytes of a file, as a full disk does."""
    psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, (size_bytes, psutil.RLIM_INFINITY))


def test_a_full_disk_under_outboxes_joins_and_lakes_is_waited_out(tmp_path: Path) -> None:
    with (
        Broker(BrokerSettings(), tmp_path / "broker") as broker,
        Ring(tmp_path, kafka_at(broker.bootstrap_servers), episodes=400, per_second=60) as ring,
    ):
        ring.start()
        time.sleep(6)
        for together in (("streams-a",), ("actor-a",), ("streams-b", "actor-b"), tuple(ring.children)):
            for name in together:
                limit(ring.children[name].pid, 100)
            time.sleep(ring.chance.uniform(3, 4))
            ring.books()
            assert [name for name in together if ring.children[name].died()] == []
            for name in together:
                limit(ring.children[name].pid, psutil.RLIM_INFINITY)
            time.sleep(1)
        ring.settle()
