"""What a join gave is taken once, also where it ended while nobody waited for it."""

from types import SimpleNamespace
from typing import Any

from streams.kafka.finished_joins import FinishedJoins


class Coordinator:
    """Joins give the generation that they made."""

    def __init__(self) -> None:
        self._generation = SimpleNamespace(generation_id=0)
        self.taken: list[bytes] = []

    async def _do_join_and_sync_async(self) -> bytes:
        self._generation = SimpleNamespace(generation_id=self._generation.generation_id + 1)
        return b"%d" % self._generation.generation_id

    async def _on_join_complete_async(self, generation: int, member_id: str, protocol: str, assignment: bytes) -> None:
        self.taken.append(assignment)


async def test_a_join_that_ended_between_two_polls_is_not_begun_again() -> None:
    coordinator: Any = Coordinator()
    FinishedJoins(coordinator)
    assert await coordinator._do_join_and_sync_async() == b"1"
    assert await coordinator._do_join_and_sync_async() == b"1"
    await coordinator._on_join_complete_async(1, "member", "protocol", b"1")
    assert await coordinator._do_join_and_sync_async() == b"2", "the next rebalance is a new one"
    assert coordinator.taken == [b"1"]


async def test_what_a_join_gave_is_worth_nothing_in_another_generation() -> None:
    coordinator: Any = Coordinator()
    FinishedJoins(coordinator)
    await coordinator._do_join_and_sync_async()
    coordinator._generation = SimpleNamespace(generation_id=-1)  # Kafka has thrown this member out
    assert await coordinator._do_join_and_sync_async() == b"0"
