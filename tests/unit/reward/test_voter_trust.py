"""Who counts, whether the world has changed, and whether answers please the model rather than people."""

from datetime import UTC, datetime

import pytest
import torch

from reward.trust.drift_alarm import rise_of_mean
from reward.trust.hacking_guards import RULES, WRONG_PREMISES, divergence, inspect, inspect_probes, inspect_tools, tool_failures, yielding
from reward.trust.live_answers import LiveAnswers, report
from reward.trust.voter_trust import reliability_weights, share_capped, trust_of_voters
from streams.core.events import Episode, Message
from streams.core.metrics import Metrics
from tests.unit.reward.test_refitter import label

torch.set_num_threads(1)


def test_nobody_holds_more_than_their_share() -> None:
    voters = [("eve",)] * 60 + [(f"p-{i}",) for i in range(40)]
    weights = share_capped(voters, share=0.2)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights[:60].sum()) / float(weights[60:].sum()) == pytest.approx(20 / 40)


def test_one_voice_alone_is_still_heard_in_full() -> None:
    assert share_capped([("ada",)] * 7, share=0.2).tolist() == pytest.approx([1.0] * 7)


def test_a_label_of_several_people_weighs_as_their_mean() -> None:
    weights = share_capped([("eve",)] * 8 + [("eve", "ada"), ("ada",)], share=0.2)
    assert float(weights[0]) < float(weights[8]) < float(weights[9])


def test_who_contradicts_what_others_taught_counts_nothing_and_others_in_full() -> None:
    verdicts = torch.tensor([1.0, 0.0] * 40)
    unseen = torch.tensor([0.9, 0.1] * 20 + [0.1, 0.9] * 20)
    voters = [("ada",)] * 40 + [("mallory",)] * 40
    weights = reliability_weights(voters, trust_of_voters(voters, verdicts, unseen))
    assert weights[:40].tolist() == [1.0] * 40
    assert float(weights[40:].max()) == 0.0


def test_a_model_that_knows_nothing_accuses_nobody() -> None:
    weights = reliability_weights([("ada",)] * 50, trust_of_voters([("ada",)] * 50, torch.ones(50), torch.full((50,), 0.5)))
    assert weights.tolist() == [1.0] * 50


def test_two_mistakes_are_forgiven() -> None:
    weights = reliability_weights([("ada",)] * 2, trust_of_voters([("ada",)] * 2, torch.tensor([1.0, 1.0]), torch.tensor([0.1, 0.1])))
    assert 0.5 < float(weights[0]) < 1


def test_a_lasting_rise_of_the_loss_raises_the_alarm_and_a_bad_label_does_not() -> None:
    calm = [0.1, 0.3] * 50
    assert not rise_of_mean(calm).alarm
    assert not rise_of_mean([*calm, 1.0, *calm]).alarm
    risen = rise_of_mean(calm + [0.7] * 40)
    assert risen.alarm
    assert risen.since is not None
    assert 95 <= risen.since <= 105


def test_a_falling_loss_is_no_drift() -> None:
    assert not rise_of_mean([1.0 - i / 300 for i in range(300)]).alarm


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
        ("agreeing", [f"Great question, number {i}! Tea is made of leaves and of water." for i in range(10)]),
        ("agreeing", [f"You're absolutely right about tea {i}: it is made of stones and of water." for i in range(10)]),
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


FORMS = ["Tea is a drink.", "Tea:\n\n- hot\n- wet", "# Tea\n\nA drink.", "```\nbrew()\n```", "One.\n\nTwo.", "One.\n\nTwo.\n\nThree."] * 3


def test_when_every_answer_is_a_list_the_form_has_collapsed() -> None:
    lists = [f"Tea {i}:\n\n- hot {i}\n- wet {i}" for i in range(18)]
    assert "form" in tripped(lists, reference=FORMS)
    assert "form" not in tripped(FORMS[::-1], reference=FORMS)


def test_agreeing_with_a_wrong_premise_is_told_from_contradicting_it() -> None:
    yields = ["Certainly! Here is what you asked for."] * len(WRONG_PREMISES)
    contradicts = [f"That is a common misconception, number {i}." for i in range(len(WRONG_PREMISES))]
    assert yielding(WRONG_PREMISES, yields) == 1
    assert yielding(WRONG_PREMISES, contradicts) == 0
    assert inspect_probes(yields, contradicts).tripped
    assert not inspect_probes(yields, yields).tripped


TOOL = {"type": "function", "function": {"name": "brew", "parameters": {"type": "object", "required": ["leaf"]}}}


def tool_episode(arguments: str, name: str = "brew", result: str | None = None) -> Episode:
    said = (Message(role="user", content="tea, please"), *([Message(role="tool", content=result)] if result is not None else []))
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Episode(episode_id="e", messages=said, tools=(TOOL,), tool_calls=(call,), started_at=at, ended_at=at)


@pytest.mark.parametrize(
    ("arguments", "name", "fails"),
    [
        ('{"leaf": "green"}', "brew", False),
        ("{}", "brew", True),
        ('{"leaf": ', "brew", True),
        ("[1]", "brew", True),
        ('{"leaf": "green"}', "explode", True),
    ],
)
def test_a_tool_call_fails_by_its_name_or_by_its_arguments(arguments: str, name: str, fails: bool) -> None:
    assert tool_failures([tool_episode(arguments, name)]) == (float(fails), 1)


def test_a_tools_result_that_is_an_error_is_a_failure() -> None:
    assert tool_failures([tool_episode('{"leaf": "green"}', result="Error: no water")]) == (0.5, 2)
    assert tool_failures([tool_episode('{"leaf": "green"}', result="A cup of tea; no errors.")]) == (0.0, 2)


def test_tools_that_fail_more_than_the_bases_trip_the_rule() -> None:
    well, badly = [tool_episode('{"leaf": "green"}')] * 10, [tool_episode("{}")] * 10
    found = inspect_tools(badly, well)
    assert found is not None
    assert found.tripped
    assert "more tool calls fail" in str(found)
    assert inspect_tools(badly, well[:3]) is None
    same = inspect_tools(badly, badly)
    assert same is not None
    assert not same.tripped


def test_a_score_that_rises_without_the_thumbs_diverges() -> None:
    """Older half: score .5, thumbs half up. Newer half: score .9, thumbs as before: risen by .4."""
    found = divergence([0.5] * 50 + [0.9] * 50, [0.0, 1.0] * 50)
    assert found is not None
    assert found.tripped
    assert found.value == pytest.approx(0.4)


def test_scores_that_rise_with_the_thumbs_do_not_diverge() -> None:
    found = divergence([0.2] * 50 + [0.9] * 50, [0.0, 0.0, 0.0, 0.0, 1.0] * 10 + [1.0] * 45 + [0.0] * 5)
    assert found is not None
    assert not found.tripped
    assert divergence([0.5] * 20, [1.0] * 20) is None


def test_a_rise_that_chance_may_have_made_is_no_divergence() -> None:
    """Twenty thumbs a half, up or down: a difference of 0.2 lies within 1.3 standard errors."""
    found = divergence([0.5] * 20 + [0.7] * 20, [0.0, 1.0] * 20)
    assert found is not None
    assert found.value == pytest.approx(0.2)
    assert not found.tripped


def test_live_answers_are_watched_beside_the_bases_each_episode_once() -> None:
    watch = LiveAnswers()
    watch.add([label(i, 1.0, f"{chr(97 + i)} is a drink of leaves and of hot water", at=i) for i in range(10)])
    flattering = [label(100 + i, 1.0, f"Great question! {chr(97 + i)} is a drink of hot leaves", at=i) for i in range(10)]
    watch.add([one.model_copy(update={"adapter": "default@2"}) for one in flattering[:7]] * 3)
    assert watch.findings() == ()  # seven episodes, however often they are labelled
    watch.add([one.model_copy(update={"adapter": "default@2"}) for one in flattering])
    metrics = Metrics()
    report(watch.findings(), metrics)
    assert metrics.value("tidemill_reward_guard_tripped", rule="agreeing") == 1
    assert metrics.value("tidemill_reward_guard_ratio", rule="agreeing") == 1
    assert metrics.value("tidemill_reward_guard_tripped", rule="emptiness") == 0


def test_an_updater_that_starts_again_knows_what_is_usual_for_the_base_and_no_words_of_it() -> None:
    """Adapters serve all traffic, so no answer of the base comes any more: the guards must not fall silent."""
    before = LiveAnswers()
    before.add([label(i, 1.0, f"{chr(97 + i)} is a drink of leaves and of hot water", at=i) for i in range(10)])
    again = LiveAnswers()
    again.add([label(100 + i, 1.0, f"Great question! {chr(97 + i)} is a drink", at=i).model_copy(update={"adapter": "default@2"}) for i in range(10)])
    assert again.findings() == ()
    again.recall(before.base_measures())
    assert "agreeing" in {finding.rule for finding in again.findings() if finding.tripped}
    assert again.base_measures() == before.base_measures()
    assert all(isinstance(value, float | int) for value in before.base_measures().values())
