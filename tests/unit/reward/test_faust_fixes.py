"""Faust's parts as the updater uses them: what was read is not lost between a recovery and the agent."""

import asyncio

import pytest
from faust.transport.drivers import aiokafka
from mode.utils.queues import FlowControlQueue

from reward.updater.faust_fixes import FlowControl, SafeConsumer


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
