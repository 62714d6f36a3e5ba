"""A rebalance that ends between two polls counts.

kafka-python talks to Kafka in the background. Where joining a group ends there while the caller is at work, its next ``poll`` forgets the result and
joins anew, which begins another rebalance: members that are busy between short polls can go on like that for ever, and commit nothing meanwhile.
"""

from typing import Any

from kafka.coordinator.consumer import ConsumerCoordinator

JOIN, COMPLETE = "_do_join_and_sync_async", "_on_join_complete_async"


def keep_finished_joins(consumer: Any) -> None:
    """From now on this ``kafka.KafkaConsumer`` uses what a join gave that ended between two polls. Changes nothing where kafka-python's inner
    workings are not as they are known here."""
    coordinator = getattr(consumer, "_coordinator", None)
    if isinstance(coordinator, ConsumerCoordinator) and all(hasattr(coordinator, name) for name in (JOIN, COMPLETE)):
        FinishedJoins(coordinator)


class FinishedJoins:
    """Stands between a coordinator and its own two steps: to join, and to take what the join gave."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._join, self._complete = getattr(coordinator, JOIN), getattr(coordinator, COMPLETE)
        self._kept: tuple[int, bytes] | None = None
        """Generation and assignment of a join that ended and was not taken yet."""
        setattr(coordinator, JOIN, self.join)
        setattr(coordinator, COMPLETE, self.complete)

    async def join(self) -> bytes:
        """Join, or what the last join gave, as long as its generation is still ours."""
        if self._kept is not None and self._kept[0] == self._coordinator._generation.generation_id:
            return self._kept[1]
        assignment: bytes = await self._join()
        self._kept = (self._coordinator._generation.generation_id, assignment)
        return assignment

    async def complete(self, *given: Any, **named: Any) -> None:
        """Take it."""
        self._kept = None
        await self._complete(*given, **named)
