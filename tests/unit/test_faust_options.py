"""Faust's flow control as the updater uses it: what was delivered before the streams resume is still there after."""

import asyncio

from mode.utils.queues import FlowControlQueue

from reward.faust_options import FlowControl


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
