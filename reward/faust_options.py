"""What Faust is told, so that it chooses nothing for itself (its session timeout is 60 s, its store a guess)."""

import ssl
from pathlib import Path
from typing import Any

from mode.utils.queues import FlowControlEvent

from reward.settings import RewardSettings
from streams.errors import ConfigError
from streams.kafka import KafkaSettings


class FlowControl(FlowControlEvent):
    """Faust's, but for what waits in the queues when it resumes: that is kept.

    After a recovery Faust delivers the first records just before it resumes, and then would drop them: read, never given to the agent, and
    not read again before the next restart. At a rebalance they are dropped still.
    """

    def resume(self) -> None:
        """Let records in again."""
        self._suspend.clear()
        self._resume.set()


def faust_options(settings: RewardSettings, kafka: KafkaSettings, state: Path) -> dict[str, Any]:
    """Keyword arguments of ``faust.App``, but for the credentials. ``state`` is a folder of the updater's own."""
    state.mkdir(parents=True, exist_ok=True)
    return {
        "broker": [f"kafka://{server}" for server in kafka.servers],
        "broker_session_timeout": kafka.session_timeout_s,
        "broker_heartbeat_interval": kafka.session_timeout_s / 4,
        "broker_request_timeout": max(kafka.request_timeout_s, kafka.session_timeout_s + 5),
        "consumer_auto_offset_reset": "earliest",
        "consumer_max_fetch_size": kafka.max_message_bytes * 2,
        "producer_acks": -1,
        "producer_max_request_size": kafka.max_message_bytes,
        "processing_guarantee": "at_least_once",
        "topic_partitions": kafka.partitions,
        "topic_replication_factor": kafka.replication,
        "topic_disable_leader": True,
        "reply_create_topic": False,
        "stream_wait_empty": False,
        "store": "memory://",
        "datadir": str(state / "faust"),
        "web_enabled": settings.web_port > 0,
        "web_host": "127.0.0.1",
        "web_bind": "127.0.0.1",
        "web_port": settings.web_port or 6066,
    }


def tls_context(kafka: KafkaSettings) -> ssl.SSLContext | None:
    """TLS as the settings say; none for a plain connection. Raises ConfigError when a file cannot be read."""
    if not kafka.security_protocol.endswith("SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_cafile)
        if kafka.ssl_certfile:
            context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile)
    except OSError as error:
        raise ConfigError(f"kafka.ssl_cafile, ssl_certfile or ssl_keyfile cannot be read: {error}") from None
    return context
