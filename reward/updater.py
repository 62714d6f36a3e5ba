"""The Faust app: labels in, reward-model versions out. Wiring only; its steps are in intake.py. The one home of faust.

State is a changelogged table of the replay buffer's entries. The changelog's deliveries are awaited before a batch counts as done, since
Faust commits what it has merely buffered; a batch that is read twice changes nothing. One updater a policy: it wants all partitions.
"""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import faust
import structlog
import torch
from faust.sensors.prometheus import setup_prometheus_sensors

from reward.faust_options import FlowControl, faust_options, tls_context
from reward.intake import Intake, Work
from reward.settings import RewardSettings
from streams.kafka import KafkaSettings, Record
from streams.site import Site
from streams.topics import LABELS

log = structlog.get_logger()
RAW: Any = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}


class AcknowledgedTable(faust.Table):
    """A table whose changelog writes can be waited for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unacknowledged: list[Any] = []

    def send_changelog(self, *args: Any, **kwargs: Any) -> Any:
        sent = super().send_changelog(*args, **kwargs)
        self.unacknowledged.append(sent)
        return sent

    async def acknowledged(self) -> None:
        sent, self.unacknowledged = self.unacknowledged, []
        await asyncio.gather(*sent)


def run(settings: RewardSettings, site: Site) -> None:
    """Update the policy's reward model until ``site.stopping`` is set."""
    torch.set_num_threads(settings.threads)
    intake = Intake(settings, site)

    async def main() -> None:
        await _serve(build(settings, site, intake, work := Work()), work, site.stopping)

    try:
        asyncio.run(main())
    finally:
        intake.close()


def build(settings: RewardSettings, site: Site, intake: Intake, work: Work) -> Any:
    """The app: one agent on the labels, one table. Called inside the event loop that serves it."""
    app = faust.App(intake.name, broker_credentials=_credentials(site.kafka), **faust_options(settings, site.kafka, site.state))
    app.flow_control = FlowControl()
    setup_prometheus_sensors(app, registry=site.metrics.registry, name_prefix="faust")  # Faust's own figures beside ours, at /metrics
    table = AcknowledgedTable(app, name="buffer", partitions=site.kafka.partitions, use_partitioner=True, key_type=bytes, value_type=bytes)
    app.tables.add(table)

    @table.on_recover
    async def recovered() -> None:
        log.info("buffer_recovered", labels=len(table), version=intake.recover(list(table.values())))

    @app.agent(app.topic(LABELS.name, schema=faust.Schema(**RAW)), name="labels")
    async def learn(stream: Any) -> None:
        async for events in stream.noack_take(settings.batch_labels, within=settings.batch_within_s):
            async with work.in_hand:
                try:
                    await take_in([event.message for event in events])
                except Exception as error:  # noqa: BLE001 - the boundary of the process: _serve raises it
                    work.failed.set_exception(error)
                    return
                for event in events:  # by hand: a batch that Faust acknowledges itself counts as done when the stream is stopped, done or not
                    await stream.ack(event)

    async def take_in(messages: Sequence[Any]) -> None:
        records = [Record(m.topic, m.partition, m.offset, int((m.timestamp or 0) * 1000), m.key, m.value, tuple(m.headers or ())) for m in messages]
        batch = await asyncio.to_thread(intake.prepare, records)
        for episode_id, value in intake.absorb(batch).items():
            if value is None:
                table.pop(episode_id.encode(), None)
            else:
                table[episode_id.encode()] = value
        await table.acknowledged()
        await asyncio.to_thread(intake.finish, batch)

    return app


async def _serve(app: Any, work: Work, stopping: threading.Event) -> None:
    starting = asyncio.ensure_future(app.start())  # in the background: it ends with the recovery, and we may be told to stop before
    try:
        while not stopping.is_set() and not work.failed.done() and not app.should_stop:
            await asyncio.sleep(0.1)
            if starting.done():
                starting.result()
        if not work.failed.done():
            await work.in_hand.acquire()  # the batch in hand is finished, and none begins
    finally:
        await app.stop()
        starting.cancel()
    if work.failed.done():
        work.failed.result()
    if app.crash_reason is not None:
        raise app.crash_reason


def _credentials(kafka: KafkaSettings) -> Any:
    """What Faust logs in with: none, a TLS context, or SASL over either."""
    if not kafka.security_protocol.startswith("SASL"):
        return tls_context(kafka)
    secret = kafka.sasl_password.get_secret_value() if kafka.sasl_password else None
    return faust.SASLCredentials(username=kafka.sasl_username, password=secret, ssl_context=tls_context(kafka), mechanism=kafka.sasl_mechanism)
