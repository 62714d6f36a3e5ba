"""The console as a process: its parts put together, served by uvicorn until stopped."""

import threading
from collections.abc import Callable
from typing import Any

import uvicorn

from dashboards.console.console_app import Console, Explain, Learning, Parts
from dashboards.console.console_facts import ConsoleFacts
from dashboards.console.console_settings import ConsoleSettings
from dashboards.console.log_following import LogFollowing
from streams.core.clock import SystemClock
from streams.core.events import Event
from streams.core.health import listening_socket
from streams.core.metrics import Metrics
from streams.core.topics import Topic
from streams.kafka import KafkaSettings, Producer, RecordPlace

ACT_TIMEOUT_S = 15.0
"""An operator waits for the acknowledgement; what takes longer has failed."""


class LogOnDemand:
    """A producer made for the first action: the console starts, and shows what it knows, while Kafka is away."""

    def __init__(self, kafka: KafkaSettings, metrics: Metrics) -> None:
        patience = {"delivery_timeout_s": ACT_TIMEOUT_S, "request_timeout_s": min(ACT_TIMEOUT_S / 2, kafka.request_timeout_s)}
        self._kafka = kafka.model_copy(update=patience)
        self._metrics, self._lock = metrics, threading.Lock()
        self._producer: Producer | None = None

    def publish(self, topic: Topic[Any], event: Event) -> RecordPlace:
        return self._made().publish(topic, event)

    def send_raw(self, topic: str, key: bytes | None, value: bytes) -> Callable[[], RecordPlace]:
        return self._made().send_raw(topic, key, value)

    def close(self) -> None:
        if self._producer is not None:
            self._producer.close(timeout_s=5)

    def _made(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer = Producer(self._kafka, self._metrics, "tidemill-console")
            return self._producer


def run_console(settings: ConsoleSettings, kafka: KafkaSettings, gated: bool, say: Callable[[str], None], explain: Explain | None = None,
                learning: Learning = lambda _: "", parts: Parts = tuple) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM. ``explain``: explains an episode's score. Raises ConfigError when the address cannot be listened on or
    no Kafka is named."""
    kafka.servers  # noqa: B018 - raises where none is set
    listening = listening_socket(settings.host, settings.port, "console")
    metrics = Metrics()
    following, log = LogFollowing(kafka, ConsoleFacts(settings.episodes_kept), metrics), LogOnDemand(kafka, metrics)
    app = Console(settings, following, log, SystemClock(), gated, explain, learning, parts).app()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
    following.start()
    say(f"The console is at http://{settings.host}:{listening.getsockname()[1]}/  ({'with' if settings.operator_key else 'without'} an operator key)")
    try:
        server.run(sockets=[listening])
    finally:
        following.stop()
        log.close()
        listening.close()
