"""kill -9 of every process in turn and of all at once, the broker too: the books balance at any moment, and no trace is left."""

import time
from contextlib import suppress
from pathlib import Path

from infra.local.embedded_broker import Broker, BrokerSettings, free_port
from streams.core.errors import Unavailable
from tests.chaos.child import kafka_at
from tests.chaos.ring import Ring


def test_kills_of_every_process_in_turn_and_together_leave_no_trace(tmp_path: Path) -> None:
    with (
        Broker(BrokerSettings(port=free_port()), tmp_path / "broker") as broker,
        Ring(tmp_path, kafka_at(broker.bootstrap_servers), episodes=900, per_second=45) as ring,
    ):
        ring.start()
        time.sleep(6)
        order = [(name,) for name in [*ring.children, "broker", *ring.children]]
        ring.chance.shuffle(order)
        order += [("streams-a", "streams-b"), ("actor-a", "actor-b"), (*ring.children, "broker")]
        for together in order:
            until = time.monotonic() + ring.chance.uniform(0.3, 3)
            while time.monotonic() < until:
                with suppress(Unavailable):  # the broker is just coming back
                    ring.books()
            children = [name for name in together if name != "broker"]
            ring.kill(*children)
            if "broker" in together:
                broker.kill()
                broker.start()
            if children:  # of no names, all are started
                ring.start(*children)
        ring.settle()
