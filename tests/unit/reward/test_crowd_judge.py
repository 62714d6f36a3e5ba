"""Whom the fit trusts: who contradicts the others counts little, however much they say, and among few people nobody is doubted."""

from dataclasses import replace

import pytest
import torch

from reward.fit.buffer_entry import BufferEntry
from reward.settings import RewardSettings
from reward.trust.crowd_judge import crowd_trust, judge_rows
from reward.trust.voter_trust import USUAL_TRUST
from reward.updater.refitter import Refitter
from tests.support.label_streams import DrawnFeatures, DrawnStream, StreamShape, drawn, ranking, updates

torch.set_num_threads(1)
SETTINGS = RewardSettings(heads=2, folds=3)
FLOOD = StreamShape(labels=900, people=50, busy=0.08, busy_share=0.6)
"""Four of fifty people give six labels of ten."""


def refitter(entries: list[BufferEntry], settings: RewardSettings = SETTINGS) -> Refitter:
    made = Refitter(settings, DrawnFeatures())
    made.absorb(entries)
    return made


def trust_in(entries: list[BufferEntry]) -> dict[str, float]:
    made = refitter(entries)
    rows = made.buffer.rows()
    return crowd_trust(rows, [made.buffer[episode_id].voters for episode_id in rows.pair_episodes], made.recipe())


def honest_part(stream: DrawnStream, hostile: int = 4) -> list[BufferEntry]:
    return [entry for entry in stream.entries if int(entry.voters[0][1:]) >= hostile]


def test_a_few_hostile_people_who_give_most_labels_count_as_if_they_had_said_nothing() -> None:
    for seed in range(10):
        stream = drawn(replace(FLOOD, hostile=0.08), seed)
        attacked = ranking(refitter(stream.entries).fitted(), stream)
        without = ranking(refitter(honest_part(stream)).fitted(), stream)
        assert without - attacked < 0.02, (seed, without, attacked)


def test_and_no_version_that_they_would_like_better_is_published() -> None:
    """Test, then train: the publishing rule weighs labels as the fit does."""
    for seed in range(3):
        stream = drawn(replace(FLOOD, hostile=0.08, labels=600), seed)
        *_, (_, last) = updates(stream, SETTINGS, batch=100)
        assert last.published is not None
        assert ranking(refitter(honest_part(stream)).fitted(), stream) - ranking(last.published, stream) < 0.03


def test_who_says_a_lot_and_agrees_is_heard_in_full() -> None:
    for seed in range(10):
        trust = trust_in(drawn(FLOOD, seed).entries)
        assert min(trust[f"p{n}"] for n in range(4)) > USUAL_TRUST


def test_nobody_vouches_for_themselves() -> None:
    """A person's own labels, on other conversations, are no witnesses: the judge's folds are made of people, and each has one voice."""
    made = refitter(drawn(FLOOD, 0).entries)
    rows = made.buffer.rows()
    judged = judge_rows(rows, [])
    folds_N = judged.folds_N(3)
    for person in range(50):
        assert len({int(fold) for fold, (voter,) in zip(folds_N, rows.voters, strict=True) if voter == f"p{person}"}) <= 1
    held = {p: sum(float(w) for w, (voter,) in zip(judged.weights_N, rows.voters, strict=True) if voter == p) for (p,) in rows.voters}
    assert max(held.values()) <= 2 * sorted(held.values())[len(held) // 2]


@pytest.mark.parametrize("people", [1, 2, 4])
def test_among_fewer_than_five_people_nobody_is_doubted(people: int) -> None:
    stream = drawn(StreamShape(labels=200, people=people, hostile=0.5), 0)
    assert set(trust_in(stream.entries).values()) == {USUAL_TRUST}


def test_where_half_of_the_people_would_be_doubted_people_differ_and_nobody_is() -> None:
    for seed in range(5):
        stream = drawn(StreamShape(labels=600, people=20, hostile=0.5), seed)
        trust = trust_in(stream.entries)
        assert sum(each < 0.5 for each in trust.values()) < 10
        assert min(float(refitter(stream.entries).weighted().weights_N.sum()), 1.0) > 0


def test_the_comparisons_of_who_contradicts_the_crowd_count_nothing_either() -> None:
    """Mallory votes on nothing, and prefers the worse of two answers each time."""
    stream = drawn(StreamShape(labels=600, people=20), 1)
    good = [entry for entry in stream.entries if entry.verdict == 1.0]
    bad = [entry for entry in stream.entries if entry.verdict == 0.0]
    compares = [
        replace(one, episode_id=f"m-{n}", verdict=None, evidence=(), voters=("mallory",), over=(other.episode_id,), said=f"m{n}")
        for n, (one, other) in enumerate(zip(bad[:60], good[:60], strict=True))
    ]
    made = refitter([*stream.entries, *compares])
    rows = made.weighted()
    assert len(rows.pair_episodes) == 60
    assert float(rows.pair_weights_P.max()) == 0.0
    honest = refitter([*stream.entries, *(replace(one, voters=("p3",)) for one in compares[:1])])
    assert float(honest.weighted().pair_weights_P.max()) > 0.0
