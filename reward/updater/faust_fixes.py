"""Faust as the updater uses it: what it is told, so that it chooses nothing for itself, and three of its parts made safe.

Its session timeout would be 60 s, its store a guess; and records that it had read would get lost between a recovery and the agent.
"""

import asyncio
from pathlib import Path
from typing import Any

import faust
from faust.transport.drivers import aiokafka
from mode.utils.queues import FlowControlEvent

from reward.settings import RewardSettings
from streams.kafka import KafkaSettings


class AcknowledgedTable(faust.Table):
    """A table whose changelog writes can be waited for: Faust commits what it has merely buffered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unacknowledged: list[Any] = []
        self._changelog_known = False

    async def await_changelog(self) -> None:
        """Wait until the producer knows the changelog's partitions. Faust asks for them when it writes, and dies where nobody has told it yet."""
        if not self._changelog_known:
            await self.app.producer._ensure_producer().partitions_for(self.changelog_topic.get_topic_name())
            self._changelog_known = True

    def send_changelog(self, *args: Any, **kwargs: Any) -> Any:
        sent = super().send_changelog(*args, **kwargs)
        self.unacknowledged.append(sent)
        return sent

    async def wait_acknowledged(self) -> None:
        sent, self.unacknowledged = self.unacknowledged, []
        await asyncio.gather(*sent)


class SafeConsumer(aiokafka.Consumer):
    """A fetch is told partitions that stay as they are while it waits.

    Faust empties the very set that it has handed over, when a recovery ends; to aiokafka an empty set means all partitions, so it hands out
    labels that Faust then drops, and reads on behind them.
    """

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        return await super()._getmany(set(active_partitions), timeout)


class FlowControl(FlowControlEvent):
    """What waits in the queues when it resumes is kept.

    After a recovery Faust may deliver the first records just before it resumes, and then would drop them. At a rebalance they are dropped still.
    """

    def resume(self) -> None:
        """Let records in again."""
        self._suspend.clear()
        self._resume.set()


def app_of(name: str, settings: RewardSettings, kafka: KafkaSettings, state: Path) -> Any:
    """The app, with its parts made safe. ``state`` is a folder of the updater's own."""
    app = faust.App(name, **_options(settings, kafka, state))
    app.flow_control = FlowControl()
    app.transport.Consumer = SafeConsumer
    return app


def _options(settings: RewardSettings, kafka: KafkaSettings, state: Path) -> dict[str, Any]:
    state.mkdir(parents=True, exist_ok=True)
    return {
        "broker": [f"kafka://{server}" for server in kafka.servers],
        "broker_credentials": _credentials(kafka),
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


def _credentials(kafka: KafkaSettings) -> Any:
    """What Faust logs in with: none, a TLS context, or SASL over either."""
    if not kafka.security_protocol.startswith("SASL"):
        return kafka.tls_context()
    secret = kafka.sasl_password.get_secret_value() if kafka.sasl_password else None
    return faust.SASLCredentials(username=kafka.sasl_username, password=secret, ssl_context=kafka.tls_context(), mechanism=kafka.sasl_mechanism)
