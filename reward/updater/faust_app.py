"""The Faust app: labels in, reward-model versions out. Wiring only; its steps are in batch_steps.py, Faust itself in faust_fixes.py.

State is a changelogged table of the replay buffer's entries. The changelog's deliveries are awaited before a batch counts as done, since
Faust commits what it has merely buffered; a batch that is read twice changes nothing. One updater a policy: who lacks a partition publishes none.
"""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import faust
import torch
from faust.sensors.prometheus import setup_prometheus_sensors

from reward.settings import RewardSettings
from reward.updater.batch_steps import BatchState, BatchSteps
from reward.updater.faust_fixes import AcknowledgedTable, app_of
from streams.core.part_context import PartContext
from streams.core.topics import LABELS
from streams.kafka import Record

RAW: Any = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}


def run(settings: RewardSettings, context: PartContext) -> None:
    """Update the policy's reward model until ``context.stopping`` is set."""
    torch.set_num_threads(settings.threads)
    steps = BatchSteps(settings, context)

    async def main() -> None:
        await _serve(build(settings, context, steps, work := BatchState()), work, context.stopping)

    try:
        asyncio.run(main())
    finally:
        steps.close()


def build(settings: RewardSettings, context: PartContext, steps: BatchSteps, work: BatchState) -> Any:
    """The app: one agent on the labels, one table. Called inside the event loop that serves it."""
    app = app_of(steps.name, settings, context.kafka, context.state)
    setup_prometheus_sensors(app, registry=context.metrics.registry, name_prefix="faust")  # Faust's own figures beside ours, at /metrics
    table = AcknowledgedTable(app, name="buffer", partitions=context.kafka.partitions, use_partitioner=True, key_type=bytes, value_type=bytes)
    app.tables.add(table)
    app.on_partitions_revoked.connect(work.on_partitions_revoked)

    @table.on_recover
    async def recovered() -> None:  # after every rebalance, whether or not there was anything to recover
        async with work.in_hand:
            if gone := await asyncio.to_thread(steps.deleted_meanwhile, list(table.keys())):
                await table.await_changelog()
                for episode_id in gone:
                    table.pop(episode_id, None)
                await table.wait_acknowledged()
            held = sum(partition.topic == LABELS.name for partition in app.consumer.assignment())
            work.holds_all_labels = await asyncio.to_thread(steps.recover, list(table.values()), held)

    @app.agent(app.topic(LABELS.name, schema=faust.Schema(**RAW)), name="labels")
    async def learn(stream: Any) -> None:
        async for events in stream.noack_take(settings.batch_labels, within=settings.batch_within_s):
            async with work.in_hand:
                try:
                    await process_batch([event.message for event in events])
                except Exception as error:  # noqa: BLE001 - the boundary of the process: _serve raises it
                    work.failed.set_exception(error)
                    return
                for event in events:  # by hand: a batch that Faust acknowledges itself counts as done when the stream is stopped, done or not
                    await stream.ack(event)

    async def process_batch(messages: Sequence[Any]) -> None:
        records = [Record(m.topic, m.partition, m.offset, int((m.timestamp or 0) * 1000), m.key, m.value, tuple(m.headers or ())) for m in messages]
        batch = await asyncio.to_thread(steps.prepare, records)
        await table.await_changelog()
        for episode_id, value in steps.absorb(batch).items():
            if value is None:
                table.pop(episode_id.encode(), None)
            else:
                table[episode_id.encode()] = value
        await table.wait_acknowledged()
        await asyncio.to_thread(steps.finish, batch, work.holds_all_labels)

    return app


async def _serve(app: Any, work: BatchState, stopping: threading.Event) -> None:
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
