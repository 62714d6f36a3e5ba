"""Partitions are dealt side by side and evenly, and none moves that need not."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streams.kafka.group_assignor import Place, SideBySideAssignor, deal

MEMBERS = ("ada", "bob", "cyd", "dan")
TOPICS = frozenset({"episodes", "feedback"})


def places(dealt: dict[str, dict[str, list[int]]]) -> dict[Place, str]:
    """Whose each place is; fails where it is two members'."""
    found: dict[Place, str] = {}
    for name, mine in dealt.items():
        for topic, numbers in mine.items():
            for number in numbers:
                assert (topic, number) not in found
                found[topic, number] = name
    return found


def settled(count: int, names: list[str], owners: dict[Place, str]) -> tuple[dict[Place, str], int]:
    """After as many rounds as it takes: whose each place is, and the rounds. What nobody gives up, nobody else is dealt."""
    counts, asked = dict.fromkeys(TOPICS, count), dict.fromkeys(names, TOPICS)
    owners = {place: name for place, name in owners.items() if name in names}
    for turn in range(1, 4):
        dealt = places(deal(counts, asked, owners))
        assert all(owners.get(place, name) == name for place, name in dealt.items()), "given to one while another has it"
        if len(dealt) == count * len(TOPICS):
            return dealt, turn
        owners = dealt
    raise AssertionError("it takes too many rounds")


@given(st.integers(1, 12), st.lists(st.sets(st.sampled_from(MEMBERS), min_size=1), min_size=1, max_size=6))
def test_members_come_and_go_and_only_what_must_moves(count: int, memberships: list[set[str]]) -> None:
    owners: dict[Place, str] = {}
    for names in map(sorted, memberships):
        before = owners
        owners, rounds = settled(count, names, owners)
        assert rounds <= 2
        for number in range(count):
            assert owners["episodes", number] == owners["feedback", number], "one number goes to one member"
        held = {name: [n for n in range(count) if owners["episodes", n] == name] for name in names}
        assert max(map(len, held.values())) - min(map(len, held.values())) <= 1
        for name in names:
            had = {number for (topic, number), owner in before.items() if (topic, owner) == ("episodes", name)}
            assert had <= set(held[name]) or set(held[name]) <= had, "who gives up takes none, and who takes gives none up"


def member(assignor: SideBySideAssignor, name: str) -> Any:
    """As the leader hears of it, over the wire."""
    told = assignor.metadata(set(TOPICS))
    return SimpleNamespace(member_id=name, group_instance_id=None, metadata=type(told).decode(told.encode()))


def cluster(count: int) -> Any:
    return SimpleNamespace(partitions_for_topic=lambda _: set(range(count)))


def test_it_goes_over_the_wire_and_a_claim_of_an_older_generation_counts_for_nothing() -> None:
    ada, bob = SideBySideAssignor(), SideBySideAssignor()
    first = ada.assign(cluster(4), [member(ada, "ada")])
    ada.on_assignment(first["ada"], generation=1)
    assert ada.owned == {(topic, number) for topic in TOPICS for number in range(4)}
    second = bob.assign(cluster(4), [member(bob, "bob")])  # ada was thought dead
    bob.on_assignment(second["bob"], generation=2)
    both = bob.assign(cluster(4), [member(ada, "ada"), member(bob, "bob")])
    assert both["ada"].partitions() == []
    assert {p.partition for p in both["bob"].partitions()} == {0, 1}


def test_a_topic_that_is_not_there_yet_is_dealt_to_nobody() -> None:
    assert places(deal({"episodes": 2, "feedback": 0}, {"ada": TOPICS}, {})) == {("episodes", 0): "ada", ("episodes", 1): "ada"}
