"""Three nodes of Apache Kafka on loopback: any one of them may be killed."""

import time
from pathlib import Path

from infra.local.embedded_broker import Broker, BrokerSettings, Node, free_port, new_cluster_id
from infra.local.startable import Startable
from streams.kafka import KafkaSettings
from streams.kafka.topic_admin import admin_client


class Cluster(Startable):
    """Every topic has three copies, and two must have a record before it counts as written."""

    def __init__(self, folder: Path) -> None:
        controllers, cluster = tuple(free_port() for _ in range(3)), new_cluster_id()
        self.nodes = [
            Broker(BrokerSettings(port=free_port()), folder / f"node-{number}", node=Node(number, controllers, cluster)) for number in (1, 2, 3)
        ]

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(node.bootstrap_servers for node in self.nodes)

    def await_whole(self) -> None:
        """Until each node has all that it shall have a copy of."""
        until = time.monotonic() + 120
        while behind := self._behind():
            assert time.monotonic() < until, f"not in sync: {behind}"
            time.sleep(0.3)

    def _behind(self) -> list[str]:
        admin = admin_client(KafkaSettings(bootstrap_servers=self.bootstrap_servers))
        try:
            topics = admin.describe_topics()
        finally:
            admin.close()
        return [topic["name"] for topic in topics for partition in topic["partitions"] if len(partition["isr_nodes"]) < len(self.nodes)]

    def start(self) -> None:
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.await_ready()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
