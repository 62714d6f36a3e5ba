"""A network that is slow and breaks: every connection to the broker goes through a proxy that delays and resets."""

import time
from pathlib import Path

from infra.local.embedded_broker import Broker, BrokerSettings, Node, free_port
from tests.chaos.child import kafka_at
from tests.chaos.proxy import Proxy
from tests.chaos.ring import Ring


def test_delays_and_resets_lose_nothing(tmp_path: Path) -> None:
    port = free_port()
    with (
        Proxy(port) as proxy,
        Broker(BrokerSettings(port=port), tmp_path / "broker", node=Node(advertised_port=proxy.port)) as broker,
        Ring(tmp_path, kafka_at(broker.bootstrap_servers), episodes=400, per_second=60) as ring,
    ):
        ring.start()
        time.sleep(6)
        broken = 0
        for _ in range(8):
            proxy.delay_s = ring.chance.choice([0.0, 0.02, 0.1])
            time.sleep(ring.chance.uniform(0.5, 2))
            broken += proxy.reset()
        proxy.delay_s = 0.0
        assert broken > 8
        passed = proxy.passed_bytes
        ring.settle()
        assert proxy.passed_bytes > passed, "all of it went through the proxy"
