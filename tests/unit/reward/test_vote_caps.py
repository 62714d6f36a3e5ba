"""One person, one network, one hour, one text again and again, accounts of yesterday: none of them outshouts everybody else."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import torch

from reward.fit.buffer_entry import BufferEntry
from reward.fit.replay_buffer import ReplayBuffer
from reward.settings import RewardSettings
from reward.trust.vote_caps import RULES, capped_rows, combined_weights, weights_by_rule

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = RewardSettings()
ANYBODY = SETTINGS.model_copy(update={"person_share": 1.0})


def entry(number: int, person: str = "", tenant: str = "a", hours: float = 0.0, said: str = "") -> BufferEntry:
    return BufferEntry(f"ep-{number}", 1.0, 1, T0 + timedelta(hours=hours), torch.zeros(2), voters=(person or f"p{number}",), tenant=tenant,
                 said=said or f"words {number}")  # fmt: skip


def weights(entries: list[BufferEntry], settings: RewardSettings = SETTINGS) -> torch.Tensor:
    return combined_weights(weights_by_rule(entries, settings, Counter(person for entry in entries for person in entry.voters)))


def share_of(entries: list[BufferEntry], chosen: range, settings: RewardSettings = SETTINGS) -> float:
    weights_N = weights(entries, settings)
    assert float(weights_N.mean()) == pytest.approx(1.0)
    return float(weights_N[list(chosen)].sum() / weights_N.sum())


def test_where_nothing_stands_out_nothing_changes() -> None:
    quiet = [entry(n, tenant="ab"[n % 2], hours=n // 2 / 2) for n in range(40)]
    assert weights(quiet).tolist() == pytest.approx([1.0] * 40)
    alone = [entry(n) for n in range(40)]  # one network, one hour: there is nobody to be set against
    assert weights(alone).tolist() == pytest.approx([1.0] * 40)


def test_a_network_full_of_people_is_held_to_its_share() -> None:
    entries = [entry(n, tenant="farm" if n < 90 else "others", hours=n) for n in range(100)]
    assert share_of(entries, range(90)) < 0.9
    tight = SETTINGS.model_copy(update={"tenant_share": 0.2})
    assert share_of(entries, range(90), tight) < share_of(entries, range(90)) < 0.85


def test_a_burst_of_fresh_accounts_does_not_outshout_a_week() -> None:
    week, burst = [entry(n, hours=n) for n in range(100)], [entry(1000 + n, hours=200) for n in range(300)]
    assert share_of(week + burst, range(100, 400)) < 0.7
    tight = SETTINGS.model_copy(update={"hour_share": 0.1, "newcomer_labels": 1})
    assert share_of(week + burst, range(100, 400), tight) < 0.3


def test_who_says_the_same_of_the_same_words_again_has_said_it_once() -> None:
    entries = [entry(n, person="spammer", said="same", hours=n) for n in range(30)] + [entry(100 + n, hours=n) for n in range(30)]
    assert share_of(entries, range(30), ANYBODY) == pytest.approx(1 / 31)
    many = [entry(n, said="same", hours=n) for n in range(30)] + [entry(100 + n, hours=n) for n in range(30)]
    assert share_of(many, range(30)) == pytest.approx(0.5)  # thirty people may well agree


def test_a_newcomer_counts_little_where_accounts_cost_nothing() -> None:
    regulars = [entry(n, person=f"regular-{n % 4}", hours=n) for n in range(40)]
    sybils = [entry(100 + n, hours=n) for n in range(40)]
    assert share_of(regulars + sybils, range(40, 80)) == pytest.approx(0.5)
    assert share_of(regulars + sybils, range(40, 80), SETTINGS.model_copy(update={"newcomer_labels": 10})) == pytest.approx(1 / 11)


def test_the_order_of_labels_changes_nothing() -> None:
    entries = [entry(n, person=f"p{n % 5}", tenant="ab"[n % 3 == 0], hours=n % 7, said=f"{n % 4}") for n in range(30)]
    expected = dict(zip([e.episode_id for e in entries], weights(entries).tolist(), strict=True))
    backwards = entries[::-1]
    assert dict(zip([e.episode_id for e in backwards], weights(backwards).tolist(), strict=True)) == pytest.approx(expected)


def corrected(number: int, person: str = "", **more: object) -> BufferEntry:
    """Nothing but a correction."""
    made = entry(number, person, **more)  # type: ignore[arg-type]
    return replace(made, verdict=None, evidence=(), corrections=(torch.ones(2),))


def thumbs(number: int, person: str = "") -> list[BufferEntry]:
    """So many that nobody stands out."""
    return [entry(10_000 + n, person or f"thumb-{n}", tenant="ab"[n % 2], hours=n) for n in range(number)]


def pair_shares(entries: list[BufferEntry], settings: RewardSettings = SETTINGS) -> dict[str, float]:
    """What part of the weight of all pairs each person holds; thumbs beside them keep what they have."""
    rows = capped_rows(ReplayBuffer(1000, entries), settings).rows
    assert rows.weights_N.tolist() == [1.0] * len(rows.episodes)
    by_episode, held = {e.episode_id: e for e in entries}, Counter[str]()
    for episode_id, weight in zip(rows.pair_episodes, rows.pair_weights_P.tolist(), strict=True):
        held[by_episode[episode_id].voters[0]] += weight
    return {person: weight / float(rows.pair_weights_P.sum()) for person, weight in held.items()}


def test_pairs_among_which_nothing_stands_out_keep_their_weight_to_the_bit() -> None:
    quiet = [corrected(n, tenant="ab"[n % 2], hours=n // 2 / 2) for n in range(40)]
    capped = capped_rows(ReplayBuffer(1000, [*thumbs(40), *(replace(e, pair_weights=(0.3, 1.0)) for e in quiet)]), SETTINGS)
    assert torch.equal(capped.rows.weights_N, torch.ones(40))
    assert torch.equal(capped.rows.pair_weights_P, torch.full((40,), 0.3))
    assert capped.moved == pytest.approx(dict.fromkeys(RULES, 0.0))


def test_who_gives_nine_tenths_of_the_corrections_is_held_to_the_share_of_a_person() -> None:
    entries = [corrected(n, "loud" if n < 90 else "", hours=n) for n in range(100)]
    assert pair_shares([*thumbs(100), *entries])["loud"] == pytest.approx(0.2)
    assert pair_shares([*thumbs(100), *entries], SETTINGS.model_copy(update={"person_share": 0.1}))["loud"] == pytest.approx(0.1)


def test_who_compares_one_answer_to_ninety_others_has_given_one_judgement() -> None:
    known = thumbs(90)
    others = [corrected(100 + n, hours=n) for n in range(10)]
    loud = replace(corrected(1, "loud", hours=500), corrections=(), over=tuple(e.episode_id for e in known))
    assert pair_shares([*known, loud, *others], SETTINGS.model_copy(update={"hour_share": 1.0}))["loud"] == pytest.approx(1 / 11)


def test_a_network_that_gives_nine_tenths_of_the_corrections_is_held_to_its_share() -> None:
    entries = [corrected(n, tenant="farm" if n < 90 else "others", hours=n) for n in range(100)]
    shares = pair_shares([*thumbs(100), *entries])
    assert sum(share for person, share in shares.items() if int(person[1:]) < 90) == pytest.approx(50 / 60)


def test_a_burst_of_corrections_does_not_outshout_a_week_of_them() -> None:
    entries = [corrected(n, hours=500 if n < 90 else n) for n in range(100)]
    shares = pair_shares([*thumbs(100), *entries])
    assert sum(share for person, share in shares.items() if int(person[1:]) < 90) == pytest.approx(50 / 60)


def test_a_correction_given_again_and_again_of_the_same_words_counts_once() -> None:
    again = [corrected(n, "spammer", said="same", hours=n) for n in range(5)]
    assert pair_shares([*thumbs(100), *again, *(corrected(100 + n, hours=n) for n in range(30))])["spammer"] == pytest.approx(1 / 31)
    two = replace(corrected(1, "eager", said="same"), corrections=(torch.ones(2), torch.zeros(2)))  # two pairs of one label are no repetition
    assert pair_shares([*thumbs(100), two, *(corrected(100 + n, hours=n) for n in range(10))])["eager"] == pytest.approx(1 / 11)


def test_who_has_given_many_thumbs_is_no_newcomer_with_their_first_correction() -> None:
    tight = ANYBODY.model_copy(update={"newcomer_labels": 10})
    entries = [*thumbs(10, "regular-0"), *thumbs(20, "regular-1")[10:], corrected(1, "regular-0"), corrected(2, "new"), corrected(3, "newer")]
    rows = capped_rows(ReplayBuffer(1000, entries), tight).rows
    assert rows.pair_weights_P.tolist() == pytest.approx([1 / 0.4, 0.1 / 0.4, 0.1 / 0.4])


def moved_by(rule: str, build: Callable[[int], BufferEntry]) -> dict[str, float]:
    moved = capped_rows(ReplayBuffer(1000, [*thumbs(100), *(build(n) for n in range(100))]), SETTINGS).moved
    assert moved[rule] == max(moved.values())
    return moved


def test_what_each_rule_moves_is_told_as_a_part_of_the_weight_of_labels_and_pairs_together() -> None:
    loud = moved_by("person", lambda n: corrected(n, "loud" if n < 60 else "", hours=n, tenant="ab"[n % 2]))
    assert loud["person"] == pytest.approx((60 - 10) / 200)  # beside 40 others' a fifth of the pairs is 10
    assert {rule for rule, part in loud.items() if part > 1e-6} == {"person"}
    farm = moved_by("tenant", lambda n: entry(n, tenant="a" if n < 80 else "b", hours=n))  # with half of the thumbs beside them
    assert farm["tenant"] == pytest.approx(130 / 200 - 100 / 170)
    burst = moved_by("hour", lambda n: corrected(n, hours=500 if n < 90 else n, tenant="ab"[n % 2] if n >= 90 else "c"))
    assert burst["hour"] == pytest.approx((0.9 - 50 / 60) / 2)
    again = moved_by("repeated", lambda n: corrected(n, f"p{n % 2}" if n < 4 else "", said=f"{n % 2}" if n < 4 else "", hours=n, tenant="ab"[n % 2]))
    assert again["repeated"] == pytest.approx((4 / 100 - 2 / 98) / 2)
