"""Deals partitions to the members of a group so that a restart of one leaves the others at work.

Cooperative (KIP-429): a member keeps what stays its own through a rebalance; what moves is given up first, and dealt in a second round. Two rules
that kafka-python's own assignors do not have together: equal partition numbers of all topics go to one member, because the join reads them side by
side; and no partition moves that need not.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor, RebalanceProtocol
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription

Place = tuple[str, int]
VERSION = 2  # of the member's metadata: with what it owns, and since which generation


class SideBySideAssignor(AbstractPartitionAssignor):
    """One member's side, and the leader's: kafka-python calls it."""

    name = "tidemill-side-by-side"

    def __init__(self) -> None:
        self.owned: frozenset[Place] = frozenset()
        """What this member owns now. Whoever listens to rebalances takes out what is given up or lost."""
        self._generation = -1

    def supported_protocols(self) -> list[RebalanceProtocol]:
        return [RebalanceProtocol.COOPERATIVE]

    def metadata(self, topics: set[str]) -> Any:
        """What this member tells the leader."""
        by_topic: dict[str, list[int]] = defaultdict(list)
        for topic, number in sorted(self.owned):
            by_topic[topic].append(number)
        place = ConsumerProtocolSubscription.TopicPartition
        owned = [place(topic=topic, partitions=numbers) for topic, numbers in by_topic.items()]
        return ConsumerProtocolSubscription(
            version=VERSION, topics=sorted(topics), user_data=b"", owned_partitions=owned, generation_id=self._generation
        )

    def on_assignment(self, assignment: Any, generation: int) -> None:
        self.owned, self._generation = frozenset((p.topic, p.partition) for p in assignment.partitions()), generation

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, Any]:
        """The leader's work: what each member may own from now on."""
        counts = {topic: len(cluster.partitions_for_topic(topic) or ()) for member in members for topic in member.metadata.topics}
        asked = {member.member_id: frozenset(member.metadata.topics) for member in members}
        dealt = deal(counts, asked, _owners(members))
        return {
            name: ConsumerProtocolAssignment(VERSION, sorted((topic, sorted(numbers)) for topic, numbers in mine.items()), b"")
            for name, mine in dealt.items()
        }


def deal(counts: Mapping[str, int], asked: Mapping[str, frozenset[str]], owners: Mapping[Place, str]) -> dict[str, dict[str, list[int]]]:
    """Partition numbers by member and topic. ``counts``: partitions of each topic; ``asked``: each member's topics; ``owners``: who owns what now.

    Members of equal topics share the numbers evenly, and each keeps its lowest. A place that must move is dealt to nobody yet: its owner gives it up
    now, and the next round deals it.
    """
    dealt: dict[str, dict[str, list[int]]] = {name: {} for name in asked}
    for topics in sorted({tuple(sorted(wanted)) for wanted in asked.values()}):
        names = sorted(name for name, wanted in asked.items() if tuple(sorted(wanted)) == topics)
        numbers = range(max((counts[topic] for topic in topics), default=0))
        for number, name in _spread(
            numbers, names, {number: owners.get((topic, number)) for topic in reversed(topics) for number in numbers}
        ).items():
            for topic in topics:
                if number < counts[topic] and owners.get((topic, number), name) == name:
                    dealt[name].setdefault(topic, []).append(number)
    return dealt


def _spread(numbers: range, names: Sequence[str], owners: Mapping[int, str | None]) -> dict[int, str]:
    """A member for each number: its owner, as long as that does not have more than its part; the rest go to those who have the fewest."""
    least, more = divmod(len(numbers), len(names))
    found: dict[int, str] = {}
    held = dict.fromkeys(names, 0)
    for most in (least, least + 1):  # at most ``more`` members hold one more than the least
        for number in numbers:
            owner = owners[number]
            if number not in found and owner in held and held[owner] < most and (most == least or sum(n > least for n in held.values()) < more):
                found[number], held[owner] = owner, held[owner] + 1
    for number in numbers:
        if number not in found:
            name = min(names, key=lambda each: (held[each], each))
            found[number], held[name] = name, held[name] + 1
    return found


def _owners(members: Sequence[Any]) -> dict[Place, str]:
    """Who owns what; of two who say so, the one with the newer generation: the other was thought dead, and has not heard of it."""
    claims: dict[Place, tuple[int, str]] = {}
    for member in members:
        generation = getattr(member.metadata, "generation_id", -1)
        for told in getattr(member.metadata, "owned_partitions", None) or ():
            for number in told.partitions:
                claims[told.topic, number] = max(claims.get((told.topic, number), (-2, "")), (generation, member.member_id))
    return {place: name for place, (_, name) in claims.items()}
