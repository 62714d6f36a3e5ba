"""The Faust app: labels in, reward-model versions out. Wiring only; what it does is in refit.py. The one home of faust.

State is a changelogged table of the replay buffer's entries; the changelog's deliveries are awaited before a batch counts as done, since
Faust commits what it has merely buffered. A batch that is read twice changes nothing. One updater per policy: it wants all
partitions. Another backbone means another application id, hence another table and all labels read again.
"""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import faust
import structlog

from reward.faust_options import faust_options, tls_context
from reward.features import Featurizer
from reward.refit import Refitter
from reward.settings import RewardSettings
from reward.versions import Versions
from streams.dead_letters import DeadLetters
from streams.errors import InvalidEvent
from streams.events import Label
from streams.kafka import KafkaSettings, Producer, Record
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
        """Wait until everything written so far is in the changelog."""
        sent, self.unacknowledged = self.unacknowledged, []
        await asyncio.gather(*sent)


class Work:
    """The batch in hand. A generator that is closed acknowledges the batch it gave last, done or not: so they are kept open."""

    def __init__(self) -> None:
        self.in_hand = asyncio.Lock()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.batches: list[Any] = []


def run(settings: RewardSettings, site: Site) -> None:
    """Update the policy's reward model until ``site.stopping`` is set."""
    featurizer = Featurizer(site.base / "dense", settings)
    producer = Producer(site.kafka, site.metrics, "tidemill-reward")
    try:
        versions = Versions(settings, site, producer, featurizer.fingerprint)
        refitter = Refitter(settings, featurizer, versions.newest_model())
        dead = DeadLetters(producer, site.clock, site.metrics, "reward")

        async def main() -> None:
            work = Work()
            await _serve(build(settings, site, refitter, versions, dead, producer, work), work, site.stopping)

        asyncio.run(main())
    finally:
        producer.close()


def build(settings: RewardSettings, site: Site, refitter: Refitter, versions: Versions, dead: DeadLetters, producer: Producer, work: Work) -> Any:
    """The app: one agent on the labels, one table. Called inside the event loop that serves it."""
    options = faust_options(settings, site.kafka, site.state)
    app = faust.App(f"tidemill-reward-{site.policy}-{versions.features[:12]}", broker_credentials=_credentials(site.kafka), **options)
    partitions, copies = site.kafka.partitions, site.kafka.replication
    table = AcknowledgedTable(app, name="buffer", partitions=partitions, use_partitioner=True, key_type=bytes, value_type=bytes)
    table.changelog_topic.replicas = copies
    app.tables.add(table)

    @table.on_recover
    async def recovered() -> None:
        refitter.recover(list(table.values()))
        log.info("buffer_recovered", labels=len(table), version=versions.number)

    @app.agent(app.topic(LABELS.name, schema=faust.Schema(**RAW)), name="labels")
    async def learn(stream: Any) -> None:
        batches = stream.take_events(settings.batch_labels, within=settings.batch_within_s)
        work.batches.append(batches)
        async for events in batches:
            async with work.in_hand:
                try:
                    await take_in(events)
                except Exception as error:  # noqa: BLE001 - the boundary of the process: _serve raises it
                    work.failed.set_exception(error)
                    await asyncio.Event().wait()  # until cancelled: to return would mark the batch as done

    async def take_in(events: Sequence[Any]) -> None:
        labels = []
        for message in (event.message for event in events):
            site.metrics.add("tidemill_consumed_total", topic=LABELS.name, part="reward")
            try:
                labels.append(Label.decode(message.value))
            except InvalidEvent as error:
                at_ms = int((message.timestamp or 0) * 1000)
                dead.set_aside(Record(message.topic, message.partition, message.offset, at_ms, message.key, message.value), error)
        await asyncio.to_thread(producer.flush)
        ours = [label for label in labels if label.policy == site.policy]
        for episode_id, value in refitter.absorb(await asyncio.to_thread(refitter.prepare, ours)).items():
            if value is None:
                table.pop(episode_id.encode(), None)
            else:
                table[episode_id.encode()] = value
        await table.acknowledged()
        versions.seen([(event.message.partition, event.message.offset) for event in events], len(ours))
        if ours:
            await asyncio.to_thread(versions.maybe_publish, refitter)

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
    password = kafka.sasl_password.get_secret_value() if kafka.sasl_password else None
    return faust.SASLCredentials(username=kafka.sasl_username, password=password, ssl_context=tls_context(kafka), mechanism=kafka.sasl_mechanism)
