"""Who counts, whether the world has changed, and whether answers please the model rather than people."""

import pytest
import torch

from reward.drift import page_hinkley
from reward.guards import RULES, inspect
from reward.voters import capped, reliable

torch.set_num_threads(1)


def test_nobody_holds_more_than_their_share() -> None:
    voters = [("eve",)] * 60 + [(f"p-{i}",) for i in range(40)]
    weights = capped(voters, share=0.2)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights[:60].sum()) / float(weights[60:].sum()) == pytest.approx(20 / 40)


def test_one_voice_alone_is_still_heard_in_full() -> None:
    assert capped([("ada",)] * 7, share=0.2).tolist() == pytest.approx([1.0] * 7)


def test_a_label_of_several_people_weighs_as_their_mean() -> None:
    weights = capped([("eve",)] * 8 + [("eve", "ada"), ("ada",)], share=0.2)
    assert float(weights[0]) < float(weights[8]) < float(weights[9])


def test_who_contradicts_what_others_taught_counts_nothing_and_others_in_full() -> None:
    verdicts = torch.tensor([1.0, 0.0] * 40)
    unseen = torch.tensor([0.9, 0.1] * 20 + [0.1, 0.9] * 20)
    weights = reliable([("ada",)] * 40 + [("mallory",)] * 40, verdicts, unseen)
    assert weights[:40].tolist() == [1.0] * 40
    assert float(weights[40:].max()) == 0.0


def test_a_model_that_knows_nothing_accuses_nobody() -> None:
    weights = reliable([("ada",)] * 50, torch.ones(50), torch.full((50,), 0.5))
    assert weights.tolist() == [1.0] * 50


def test_two_mistakes_are_forgiven() -> None:
    weights = reliable([("ada",)] * 2, torch.tensor([1.0, 1.0]), torch.tensor([0.1, 0.1]))
    assert 0.5 < float(weights[0]) < 1


def test_a_lasting_rise_of_the_loss_raises_the_alarm_and_a_bad_label_does_not() -> None:
    calm = [0.3, 0.5] * 50
    assert not page_hinkley(calm).alarm
    assert not page_hinkley([*calm, 6.0, *calm]).alarm
    risen = page_hinkley(calm + [1.1] * 40)
    assert risen.alarm
    assert risen.since is not None
    assert 95 <= risen.since <= 105


def test_a_falling_loss_is_no_drift() -> None:
    assert not page_hinkley([1.0 - i / 300 for i in range(300)]).alarm


BASE = [f"{word} is a drink of the world. It is made of leaves and water." for word in "abcdefghijklmnopqrst"]


def tripped(answers: list[str], reference: list[str] = BASE) -> set[str]:
    return {finding.rule for finding in inspect(answers, reference) if finding.tripped}


def test_answers_like_the_bases_trip_nothing() -> None:
    assert tripped([f"{word} is a dish of the world. It is made of beans and water." for word in "abcdefghijklmnopqrst"]) == set()


@pytest.mark.parametrize(
    ("rule", "answers"),
    [
        ("length", [" ".join(f"w{i}-{k}" for k in range(80)) for i in range(10)]),
        ("length", [f"Tea {i}." for i in range(10)]),
        ("repetition", [f"start {i} " + "you are great and " * 6 for i in range(10)]),
        ("refusal", [f"Item {i}: I'm sorry, but I can't help with that request about tea leaves." for i in range(10)]),
        ("asking", [f"Well, {i} teas exist in the wide world of plants and water, which one would you like?" for i in range(10)]),
        ("sameness", [f"You've come to the right place number {i} for tea, made of leaves and water." for i in range(10)]),
        ("emptiness", ["", "  "] * 10),
    ],
)
def test_each_sign_of_hacking_trips_its_rule(rule: str, answers: list[str]) -> None:
    assert rule in tripped(answers)


def test_what_the_base_does_too_is_no_sign() -> None:
    asking = [f"Well, {i} teas exist, which one would you like?" for i in range(10)]
    assert tripped(asking, reference=asking) == set()


def test_a_handful_of_answers_proves_nothing() -> None:
    assert inspect(["", "", ""], BASE) == ()


def test_every_rule_has_a_name_of_its_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
