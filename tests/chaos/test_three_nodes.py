"""Three nodes of Kafka, each killed in turn under load: nothing is lost, and how long nothing was acknowledged is written down."""

import itertools
import json
import os
import platform
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from streams.core.errors import Unavailable
from streams.core.events import Episode, new_id
from streams.core.metrics import Metrics
from streams.core.topics import Topic
from streams.kafka import KafkaSettings, Producer, read_to_end
from streams.kafka.topic_admin import admin_client
from tests.chaos.child import kafka_at
from tests.chaos.cluster import Cluster
from tests.chaos.ring import Ring
from tests.unit.streams.test_ledger import episode

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "three_nodes.json"
PULSE = Topic("pulse", Episode, "an event every 20 ms, beside the ring's own", ("chaos",), ("chaos",), partitioned=True)


class Pulse(threading.Thread):
    """Publishes an event at a time, with the settings as they are by default, and notes when each was acknowledged."""

    def __init__(self, settings: KafkaSettings) -> None:
        super().__init__(name="pulse")
        self._producer, self.stopping = Producer(settings, Metrics(), "pulse", linger_ms=0), threading.Event()
        self.at: list[float] = []
        self.ids: list[str] = []
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.stopping.wait(0.02):
            try:
                self._producer.publish(PULSE, event := episode(new_id("pulse")))
            except Unavailable as error:
                self.failures.append(str(error))
                continue
            self.ids.append(event.episode_id)
            self.at.append(time.monotonic())
        self._producer.close()

    def longest_pause_s(self, since: float) -> float:
        """Between two acknowledgements, or since then; what is still going on counts, too."""
        times = [since, *(at for at in self.at if at > since), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def await_beat(self, since: float) -> None:
        """Until things were acknowledged without pause for two seconds, longer after ``since`` than a dead node stays in the books."""
        until = time.monotonic() + 120
        while len([at for at in self.at if at > max(since + 12, time.monotonic() - 2)]) < 20:
            assert time.monotonic() < until, f"nothing is acknowledged any more: {self.failures}"
            time.sleep(0.2)


def test_each_of_three_nodes_is_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    with Cluster(tmp_path / "kafka") as cluster, Ring(tmp_path, kafka_at(cluster.bootstrap_servers, 3), episodes=800, per_second=40) as ring:
        settings = KafkaSettings(bootstrap_servers=cluster.bootstrap_servers, replication=3)
        admin = admin_client(settings)
        admin.create_topics({PULSE.name: {"num_partitions": 4, "replication_factor": 3}}, wait_for_metadata=True)
        admin.close()
        pulse, pauses = Pulse(settings), []
        ring.start()
        pulse.start()
        try:
            time.sleep(5)
            for node in cluster.nodes:
                cluster.await_whole()
                killed_at = time.monotonic()
                node.kill()
                pulse.await_beat(killed_at)
                pauses.append(round(pulse.longest_pause_s(killed_at), 2))
                node.start()
        finally:
            pulse.stopping.set()
            pulse.join(150)
        found = {PULSE.decode(record.value).episode_id for record in read_to_end(settings, PULSE, "test", Metrics())}
        assert set(pulse.ids) <= found
        assert pulse.failures == [], "a node that is away is waited for within kafka.delivery_timeout_s"
        ring.settle()
    print(f"acknowledged {len(pulse.ids)}; longest pauses {pauses} s")
    if os.environ.get("CHAOS_WRITE"):
        told = {"taken_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
                "load": os.getloadavg(), "acknowledged": len(pulse.ids), "longest_pause_s_after_each_kill": pauses}  # fmt: skip
        RESULT.write_text(json.dumps(told, indent=1) + "\n")
