"""Whatever one person does: their share of the weight in a fit stays within the cap, and they displace no more than their share of the buffer."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.fit.buffer_entry import NAMELESS, BufferEntry
from reward.fit.replay_buffer import ReplayBuffer
from reward.settings import RewardSettings
from reward.trust.person_share_cap import held_by_person, share_factors
from reward.trust.vote_caps import capped_rows
from streams.core.events import ANONYMOUS, FeedbackKind, Vote
from streams.kafka.partitioning import partition_of
from tests.unit.reward.test_refitter import TEN, refitter

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = RewardSettings()
MALLORY = "mallory"


def entry(name: str, person: str, minutes: float = 0.0, verdict: float | None = 1.0, **more: object) -> BufferEntry:
    made = BufferEntry(name, verdict, 1, T0 + timedelta(minutes=minutes), torch.zeros(2), voters=(person,), said=name)
    return replace(made, **more)  # type: ignore[arg-type]


def share_of(person: str, entries: Sequence[BufferEntry], chosen: RewardSettings = SETTINGS) -> float:
    """The person's share of the weight of labels and pairs, worked out anew from the rows that are fitted."""
    rows = capped_rows(ReplayBuffer(10_000, entries), chosen).rows
    by_episode = {each.episode_id: each.voters for each in entries}
    held: Counter[str] = Counter()
    for voters, weight in [
        *zip(rows.voters, (rows.weights_N * rows.amounts_N).tolist(), strict=True),
        *zip((by_episode[i] for i in rows.pair_episodes), rows.pair_weights_P.tolist(), strict=True),
    ]:
        held[voters[0]] += weight
    return held[person] / sum(held.values())


honest = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 1.0]), st.integers(0, 500)), min_size=1, max_size=40)
"""(person, verdict, minutes)"""
flood = st.lists(
    st.tuples(st.sampled_from(["thumb", "comparisons", "corrections", "again", "signal"]), st.integers(1, 60), st.integers(0, 500)), max_size=8
)
"""(deed, times, minutes)"""


def by_mallory(deeds: Sequence[tuple[str, int, int]], known: Sequence[BufferEntry]) -> list[BufferEntry]:
    done = []
    for n, (deed, times, minutes) in enumerate(deeds):
        name = f"{deed}-{n}"
        if deed == "thumb":
            done += [entry(f"{name}-{k}", MALLORY, minutes + k) for k in range(times)]
        elif deed == "again":
            done += [entry(f"{name}-{k}", MALLORY, minutes + k, said="the same words") for k in range(times)]
        elif deed == "signal":
            done += [entry(f"{name}-{k}", MALLORY, minutes, evidence=(("implicit", 1.0, 0.2),)) for k in range(times)]
        elif deed == "comparisons":
            done.append(entry(name, MALLORY, minutes, None, over=tuple(each.episode_id for each in known[:times])))
        else:
            done += [entry(f"{name}-{k}", MALLORY, minutes, None, corrections=(torch.ones(2),) * (1 + k % 3)) for k in range(times)]
    return done


@given(honest, flood, st.sampled_from([0.05, 0.2, 0.5]))
@settings(max_examples=60, deadline=None)
def test_whatever_one_person_does_their_share_of_the_weight_stays_within_the_cap(
    others: list[tuple[int, float, int]], deeds: list[tuple[str, int, int]], share: float
) -> None:
    labels = [entry(f"honest-{n}", f"p{person}", minutes, verdict) for n, (person, verdict, minutes) in enumerate(others)]
    entries = [*labels, *by_mallory(deeds, labels)]
    people = len({each.voters for each in entries})
    chosen = SETTINGS.model_copy(update={"person_share": share})
    assert share_of(MALLORY, entries, chosen) <= max(share, 1 / people) + 1e-6


def test_nine_hundred_and_fifty_of_a_thousand_labels_hold_a_fifth() -> None:
    entries = [entry(f"m-{n}", MALLORY, n) for n in range(950)] + [entry(f"h-{n}", f"p{n % 25}", 20 * n) for n in range(50)]
    assert share_of(MALLORY, entries) == pytest.approx(0.2, abs=1e-6)


def test_one_label_with_two_hundred_comparisons_holds_what_one_label_holds() -> None:
    others = [entry(f"h-{n}", f"p{n % 25}", 20 * n, float(n % 2)) for n in range(200)]
    loud = entry("loud", MALLORY, 1, None, over=tuple(each.episode_id for each in others))
    assert share_of(MALLORY, [*others, loud]) == pytest.approx(1 / 201, rel=1e-3)


@given(st.dictionaries(st.integers(0, 30), st.floats(1e-3, 1e3), min_size=1), st.sampled_from([0.05, 0.2, 0.5, 1.0]))
@settings(max_examples=200, deadline=None)
def test_factors_cap_as_little_as_they_must(amounts: dict[int, float], share: float) -> None:
    held = {f"p{person}": amount for person, amount in amounts.items()}
    factors = share_factors(held, share)
    kept = {person: amount * factors[person] for person, amount in held.items()}
    permitted, total = max(share, 1 / len(held)), sum(kept.values())
    assert all(0 < factor <= 1 for factor in factors.values())
    assert max(kept.values()) <= permitted * total * (1 + 1e-6)
    for person, factor in factors.items():
        if factor < 1 - 1e-9:  # who is capped holds exactly what is permitted, or as much as everybody
            assert kept[person] == pytest.approx(max(kept.values()), rel=1e-6)


def test_a_row_of_several_people_is_held_by_them_in_equal_parts() -> None:
    assert held_by_person(torch.tensor([1.0, 2.0]), [("a",), ("a", "b")]) == {"a": 2.0, "b": 1.0}


ROOM, PEOPLE, MOST_EACH = 100, 8, 8


@given(
    st.lists(st.integers(0, PEOPLE * MOST_EACH - 1), max_size=PEOPLE * MOST_EACH, unique=True),
    st.lists(st.tuples(st.integers(0, 150), st.sampled_from([0.0, 1.0]), st.integers(0, 10_000)), min_size=150, max_size=400),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_one_persons_flood_displaces_nobodys_label(who: list[int], deeds: list[tuple[int, float, int]], random: object) -> None:
    """Eight people fill less than what the cap leaves them; one gives, and changes, up to hundreds of labels before, after and between."""
    honest_ones = [entry(f"h-{n}", f"p{n % PEOPLE}", n, float(n % 3 == 0)) for n in who]
    flood_ones = [entry(f"m-{name}", MALLORY, minutes + n / 1000, verdict) for n, (name, verdict, minutes) in enumerate(deeds)]
    stream = [*honest_ones, *flood_ones]
    random.shuffle(stream)  # type: ignore[attr-defined]
    buffer = ReplayBuffer(ROOM, person_share=0.2)
    for each in stream:
        buffer.add([each])
    assert all(each.episode_id in buffer for each in honest_ones)


def test_a_thousand_thumbs_of_one_person_leave_two_hundred_of_others() -> None:
    for partitions in (1, 4, 8):
        buffer = ReplayBuffer(1000, person_share=0.2, partitions=partitions)
        buffer.add(entry(f"h-{n}", f"p{n % 20}", n, float(n % 2)) for n in range(200))
        buffer.add(entry(f"m-{n}", MALLORY, 1000 + n) for n in range(1000))
        kept = Counter(each.voters[0] == MALLORY for each in buffer.with_verdict())
        assert kept[False] == 200
        assert kept[True] >= 700


def test_labels_without_a_name_are_many_peoples_and_each_counts_little() -> None:
    no_name = [entry(f"n-{n}", f"{NAMELESS}{n}", 20 * n) for n in range(40)]
    named = [entry(f"h-{n}", f"p{n}", 20 * n) for n in range(40)]
    rows = capped_rows(ReplayBuffer(1000, [*no_name, *named]), SETTINGS).rows
    weight = dict(zip(rows.episodes, rows.weights_N.tolist(), strict=True))
    assert weight["n-3"] == pytest.approx(weight["h-3"] * SETTINGS.nameless_weight)
    alone = capped_rows(ReplayBuffer(1000, no_name), SETTINGS).rows
    assert alone.weights_N.tolist() == pytest.approx([1.0] * 40)  # where nobody gives a name there is nobody to be set against
    buffer = ReplayBuffer(60, named, person_share=0.2)
    buffer.add(entry(f"flood-{n}", f"{NAMELESS}x{n}", 5000 + n) for n in range(500))
    assert sum(not each.nameless for each in buffer.with_verdict()) >= 30
    (made,) = refitter().prepare([TEN[0].model_copy(update={"votes": (vote_without_name(),)})])
    assert made.nameless


def vote_without_name() -> Vote:
    return Vote(feedback_id="fb", user_id=ANONYMOUS, kind=FeedbackKind.THUMB, value=1.0, at=T0)


@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 4), st.sampled_from([0.0, 1.0, None]), st.integers(0, 50)), min_size=1, max_size=120),
    st.integers(4, 12),
    st.lists(st.integers(1, 9), min_size=1, max_size=10),
    st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_what_a_full_buffer_keeps_depends_neither_on_batches_nor_on_how_partitions_interleave(
    deeds: list[tuple[int, int, float | None, int]], capacity: int, sizes: list[int], random: object
) -> None:
    """Labels that are given, changed and withdrawn, by few people, into a buffer that is too small: live, and all at once from the lake."""
    log = [
        replace(entry(f"ep-{number}", f"p{person}", minutes, verdict), feedback_count=n, features_D=None if verdict is None else torch.zeros(2))
        for n, (number, person, verdict, minutes) in enumerate(deeds)
    ]
    by_partition: dict[int, list[BufferEntry]] = defaultdict(list)
    for each in log:
        by_partition[partition_of(each.episode_id.encode(), 3)].append(each)
    at_once = ReplayBuffer(capacity, [each for _, some in sorted(by_partition.items()) for each in some], 0.2, partitions=3)
    turns = [partition for partition, some in by_partition.items() for _ in some]
    random.shuffle(turns)  # type: ignore[attr-defined]
    interleaved = [by_partition[partition].pop(0) for partition in turns]
    live, size = ReplayBuffer(capacity, person_share=0.2, partitions=3), iter(sizes * len(log))
    while interleaved:
        taken = next(size)
        live.add(interleaved[:taken])
        del interleaved[:taken]
    assert [e.encode() for e in live.entries()] == [e.encode() for e in at_once.entries()]
