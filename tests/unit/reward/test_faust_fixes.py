"""Faust's parts as the updater uses them: what was read is not lost between a recovery and the agent."""

import asyncio
from types import SimpleNamespace

import pytest
from faust.transport.drivers import aiokafka
from mode.utils.queues import FlowControlQueue

from reward.updater.faust_fixes import AcknowledgedTable, FlowControl, SafeConsumer


def test_what_waits_is_kept_at_a_resume_and_dropped_at_a_rebalance() -> None:
    async def waiting() -> tuple[int, int]:
        flow = FlowControl()
        queue: FlowControlQueue[str] = FlowControlQueue(flow_control=flow, clear_on_resume=True)
        queue.put_nowait("a label")
        flow.resume()
        assert flow.is_active()
        await flow.acquire()
        kept = queue.qsize()
        flow.suspend()
        flow.clear()
        return kept, queue.qsize()

    assert asyncio.run(waiting()) == (1, 0)


def test_a_fetch_is_told_partitions_that_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[set[str]] = []

    async def getmany(self: object, active_partitions: set[str], timeout: float) -> dict[str, list[str]]:
        active.clear()  # the recovery ends while the fetch waits
        told.append(active_partitions)
        return {}

    monkeypatch.setattr(aiokafka.Consumer, "_getmany", getmany)
    active = {"changelog-0"}
    asyncio.run(SafeConsumer._getmany(object.__new__(SafeConsumer), active, 1.0))
    assert told == [{"changelog-0"}]


async def test_the_changelogs_partitions_are_asked_for_once_before_anything_is_written() -> None:
    asked: list[str] = []

    class Producer:
        async def partitions_for(self, topic: str) -> set[int]:
            asked.append(topic)
            return {0}

    table = AcknowledgedTable.__new__(AcknowledgedTable)
    table.app = SimpleNamespace(producer=SimpleNamespace(_ensure_producer=Producer))
    table._changelog_topic = SimpleNamespace(get_topic_name=lambda: "buffer-changelog")
    table._changelog_known = False
    await table.await_changelog()
    await table.await_changelog()
    assert asked == ["buffer-changelog"]
