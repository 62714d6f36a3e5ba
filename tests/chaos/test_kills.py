"""kill -9 of every process in turn and of all at once, the broker too: the log is as if nothing had happened."""

import time
from pathlib import Path

from infra.broker import Broker, BrokerSettings, free_port
from tests.chaos.child import kafka_at
from tests.chaos.ring import Ring


def test_kills_of_every_process_in_turn_and_together_leave_no_trace(tmp_path: Path) -> None:
    with (
        Broker(BrokerSettings(port=free_port()), tmp_path / "broker") as broker,
        Ring(tmp_path, kafka_at(broker.bootstrap_servers), episodes=600, per_second=60) as ring,
    ):
        ring.start()
        time.sleep(6)
        order = [*ring.children, "broker", *ring.children]
        ring.chance.shuffle(order)
        for name in order:
            time.sleep(ring.chance.uniform(0.3, 1.5))
            if name == "broker":
                broker.kill()
                broker.start()
            else:
                ring.kill(name)
                ring.start(name)
        ring.books()
        for together in (("streams-a", "streams-b"), ("actor-a", "actor-b"), tuple(ring.children)):
            time.sleep(ring.chance.uniform(0.3, 1.5))
            ring.kill(*together)
            if len(together) == len(ring.children):
                broker.kill()
                broker.start()
            ring.start(*together)
        ring.settle()
