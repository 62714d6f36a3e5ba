"""A consumer group in memory: members share partitions by range, and each rebalance makes a new generation.

*Eager*: a member gives up everything before it joins again. *Cooperative*: it keeps what stays its own; what moves is first given up by the one,
and in a second rebalance given to the other. A member that stops its heartbeats is out after the session timeout; whoever was out and comes back is a
zombie: its commits are refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.simulated_log import SimulatedLog

Place = tuple[str, int]


@dataclass
class GroupMember:
    """One consumer in the group."""

    topics: tuple[str, ...]
    owned: set[Place] = field(default_factory=set)
    dealt: set[Place] = field(default_factory=set)
    silent_since_ms: int | None = None
    """When its heartbeats stopped; None while it sends them."""


class SimulatedGroup:
    """Members, generation and committed offsets."""

    def __init__(self, log: "SimulatedLog") -> None:
        self._log = log
        self.generation = 0
        self.members: dict[str, GroupMember] = {}
        self.committed: dict[Place, int] = {}
        self.joined: set[str] | None = None
        """Members that have joined the rebalance that is going on; None: the group is stable."""

    def join(self, member: str, topics: Iterable[str]) -> None:
        """Become a member, or say that one is ready for the next generation. Begins a rebalance where none is going on."""
        self.members.setdefault(member, GroupMember(tuple(topics)))
        if self.joined is None:
            self.joined = set()
        self.joined.add(member)

    def leave(self, member: str) -> None:
        """In good order, or put out: its partitions go to the others."""
        if self.members.pop(member, None) is not None:
            self.joined = (self.joined or set()) - {member} if self.members else None

    def sweep(self) -> None:
        """Put out whoever has been silent for longer than the session timeout."""
        limit_ms = self._log.settings.session_timeout_s * 1000
        for name, member in list(self.members.items()):
            if member.silent_since_ms is not None and self._log.now_ms - member.silent_since_ms > limit_ms:
                self.leave(name)

    def complete(self) -> bool:
        """Deal the partitions once all members have joined. True when the group is stable."""
        if self.joined is None:
            return True
        if self.joined != set(self.members):
            return False
        self.joined = None
        self.generation += 1
        dealt = self._ranges()
        for name, member in self.members.items():
            taken = {place for other, each in self.members.items() if other != name for place in each.owned}
            member.dealt = dealt[name] - taken if self._log.cooperative else dealt[name]
        return True

    def commit(self, member: str, generation: int, offsets: dict[Place, int]) -> bool:
        """False for who is no member of this generation: a zombie."""
        self.sweep()
        if member not in self.members or generation != self.generation:
            return False
        self.committed.update(offsets)
        return True

    def _ranges(self) -> dict[str, set[Place]]:
        dealt: dict[str, set[Place]] = {name: set() for name in self.members}
        for topic in sorted({topic for member in self.members.values() for topic in member.topics}):
            names = sorted(name for name, member in self.members.items() if topic in member.topics)
            each, more = divmod(self._log.count(topic), len(names))
            first = 0
            for position, name in enumerate(names):
                after = first + each + (position < more)
                dealt[name] |= {(topic, number) for number in range(first, after)}
                first = after
        return dealt
