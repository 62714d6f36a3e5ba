"""One network, one hour, one text again and again, accounts of yesterday: none of them outshouts everybody else."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import torch

from reward.buffer import Entry
from reward.crowds import crowd_weights, largest_share
from reward.settings import RewardSettings
from reward.voters import capped

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = RewardSettings()


def entry(number: int, person: str = "", tenant: str = "a", hours: float = 0.0, said: str = "") -> Entry:
    return Entry(f"ep-{number}", 1.0, 1, T0 + timedelta(hours=hours), torch.zeros(2), voters=(person or f"p{number}",), tenant=tenant,
                 said=said or f"words {number}")  # fmt: skip


def share_of(entries: list[Entry], chosen: range, settings: RewardSettings = SETTINGS) -> float:
    weights_N = crowd_weights(entries, settings)
    assert float(weights_N.mean()) == pytest.approx(1.0)
    return float(weights_N[list(chosen)].sum() / weights_N.sum())


def test_where_nothing_stands_out_nothing_changes() -> None:
    quiet = [entry(n, tenant="ab"[n % 2], hours=n // 2 / 2) for n in range(40)]
    assert crowd_weights(quiet, SETTINGS).tolist() == pytest.approx([1.0] * 40)
    alone = [entry(n) for n in range(40)]  # one network, one hour: there is nobody to be set against
    assert crowd_weights(alone, SETTINGS).tolist() == pytest.approx([1.0] * 40)


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
    assert share_of(entries, range(30)) == pytest.approx(1 / 31)
    many = [entry(n, said="same", hours=n) for n in range(30)] + [entry(100 + n, hours=n) for n in range(30)]
    assert share_of(many, range(30)) == pytest.approx(0.5)  # thirty people may well agree


def test_a_newcomer_counts_little_where_accounts_cost_nothing() -> None:
    regulars = [entry(n, person=f"regular-{n % 4}", hours=n) for n in range(40)]
    sybils = [entry(100 + n, hours=n) for n in range(40)]
    assert share_of(regulars + sybils, range(40, 80)) == pytest.approx(0.5)
    assert share_of(regulars + sybils, range(40, 80), SETTINGS.model_copy(update={"newcomer_labels": 10})) == pytest.approx(1 / 11)


def test_the_order_of_labels_changes_nothing() -> None:
    entries = [entry(n, person=f"p{n % 5}", tenant="ab"[n % 3 == 0], hours=n % 7, said=f"{n % 4}") for n in range(30)]
    weights = dict(zip([e.episode_id for e in entries], crowd_weights(entries, SETTINGS).tolist(), strict=True))
    backwards = entries[::-1]
    assert dict(zip([e.episode_id for e in backwards], crowd_weights(backwards, SETTINGS).tolist(), strict=True)) == pytest.approx(weights)


def test_the_largest_share_of_any_one_person_is_told_and_kept_down() -> None:
    entries = [entry(n, person="loud" if n < 60 else f"p{n}") for n in range(100)]
    voters = [e.voters for e in entries]
    assert largest_share(voters, torch.ones(100)) == pytest.approx(0.6)
    assert (largest_share(voters, capped(voters, 0.2)) or 1) == pytest.approx(1 / 3)
    assert largest_share([()], torch.ones(1)) is None
    assert largest_share([("ada",)] * 7, torch.full((7,), 0.7)) == 1.0  # the sum of the parts is a hair above the whole
    assert crowd_weights([replace(entries[0], voters=())], SETTINGS).tolist() == [1.0]
