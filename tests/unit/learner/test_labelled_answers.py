"""What the learner takes from labels, and what thumbs and words ask of the policy."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.objectives.hindsight_objective import HindsightObjective
from learner.objectives.losses import distillation_kl
from learner.objectives.thumb_objective import ThumbObjective
from learner.ring.labelled_answers import LabelledAnswer, LabelledPool, advised
from learner.rollouts.rollout_engines import TransformersEngine
from learner.runs.trainer import Prompt, Trainer
from learner.settings import LearnerSettings
from streams.core.events import Label, Message

pytestmark = pytest.mark.usefixtures("torch_threads")
SETTINGS = LearnerSettings(dtype="float32", max_output_tokens=6, samples_per_prompt=2, learning_rate=0.01, kl_coefficient=0.0)
AT = datetime(2030, 1, 1, tzinfo=UTC)
ASKED: Prompt = (Message(role="system", content="Be kind."), Message(role="user", content="What is tea?"))


def label(number: int, *votes: dict[str, object], verdict: float | None = None, **fields: object) -> Label:
    return Label.model_validate({
        "episode_id": f"ep-{number}", "policy": "default", "outcome": "completed", "messages": [{"role": "user", "content": f"Question {number}?"}],
        "answer": "It is.", "verdict": verdict, "episode_at": AT, "first_feedback_at": AT, "newest_feedback_at": AT,
        "votes": [{"feedback_id": f"f-{n}", "user_id": "u", "at": AT} | vote for n, vote in enumerate(votes)],
    } | fields)  # fmt: skip


def labelled(number: int, answer: str = "warm leaves", **fields: object) -> LabelledAnswer:
    return LabelledAnswer.model_validate({"episode_id": f"ep-{number}", "prompt": ASKED, "answer": answer} | fields)


def test_a_label_is_taken_as_its_verdict_its_comments_and_its_newest_correction() -> None:
    said = label(1, {"kind": "comment", "text": "too short"}, {"kind": "correction", "text": "First."}, {"kind": "correction", "text": "Second."},
                 {"kind": "thumb", "value": 0.0}, verdict=0.0, outcome="truncated")  # fmt: skip
    found = LabelledAnswer.of(said)
    assert found is not None
    assert (found.good, found.comments, found.correction, found.ended) == (False, ("too short",), "Second.", False)
    assert LabelledAnswer.of(label(1)) is None  # taken back
    assert LabelledAnswer.of(label(1, verdict=0.5)) is None  # as many for as against
    assert LabelledAnswer.of(label(1, verdict=1.0, outcome="failed")) is None
    assert LabelledAnswer.of(label(1, verdict=1.0, answer=" ")) is None


def test_the_pool_holds_what_people_think_now_and_gives_the_fresh_and_the_least_used_first(tmp_path: Path) -> None:
    pool = LabelledPool("default", kept=5)
    for number in range(6):
        pool.update(label(number, *([{"kind": "comment", "text": "say you"}] if number in (2, 5) else []), verdict=1.0))
    pool.update(label(9, verdict=1.0, policy="other"))
    assert len(pool) == 5  # the oldest left
    assert [one.episode_id for one in pool.choose(4)] == ["ep-5", "ep-2", "ep-4", "ep-3"]  # half with words, newest first
    assert [one.episode_id for one in pool.choose(2)] == ["ep-5", "ep-1"]  # whoever was not learned from yet comes before the others
    pool.update(label(1))
    pool.update(label(3, verdict=0.0))  # changed: new again
    assert "ep-1" not in {one.episode_id for one in pool.choose(9)}
    pool.save(tmp_path / "judged.json")
    again = LabelledPool("default", kept=5)
    again.load(tmp_path / "judged.json")
    assert {one.episode_id: one.good for one in again.choose(9)} == {"ep-2": True, "ep-3": False, "ep-4": True, "ep-5": True}


def test_what_was_said_next_is_taken_only_where_it_is_asked_for(tmp_path: Path) -> None:
    replied = label(1, {"kind": "reply", "text": "No, I meant green tea."}, {"kind": "reply", "text": "x" * 9000})
    assert LabelledAnswer.of(replied) is None
    found = LabelledAnswer.of(replied, with_replies=True)
    assert found is not None
    assert (found.replies, found.has_words, found.good) == (("No, I meant green tea.", "x" * 1000), False, None)
    without, pool = LabelledPool("default", kept=9), LabelledPool("default", kept=9, with_replies=True)
    for number in range(4):
        said = {"kind": "comment", "text": "say you"} if number == 0 else {"kind": "reply", "text": "thanks"}
        without.update(label(number, said))
        pool.update(label(number, said))
    assert (len(without), len(pool)) == (1, 4)
    assert [one.episode_id for one in pool.choose(2)] == ["ep-0", "ep-3"]  # next turns, however many, never push out what was said of an answer
    with pytest.raises(ValidationError, match="hindsight_weight is 0"):
        LearnerSettings(hindsight_replies=True)


def test_the_teacher_is_told_what_people_said_and_nothing_else_differs() -> None:
    told = advised(labelled(1, comments=("Say you.", "Be brief.")))
    assert told[0] == ASKED[0]
    assert told[1].text == "What is tea?\n\nRemember: Say you.\n\nRemember: Be brief."
    assert advised(labelled(1, comments=("Say you.",), correction="You drink it."))[1].text == "What is tea?\n\nA good answer is: You drink it."
    told = advised(labelled(1, replies=("No, green.", "Thanks.")))
    assert told[1].text == "What is tea?\n\nOnce this was answered, the person said: No, green.\n\nOnce this was answered, the person said: Thanks."
    assert advised(labelled(1, comments=("Say you.",), replies=("Thanks.",)))[1].text == "What is tea?\n\nRemember: Say you."


def logprob(policy: Policy, answer: str) -> float:
    with torch.no_grad():
        row = Branches(policy.prompt_ids(ASKED), (policy.answer_ids(answer, True, 99),))
        return float(policy.stats(pack([row], policy.eos_id)).logprobs_BT.sum())


def test_a_fresh_policy_is_told_what_its_thumbs_weigh(tiny_base: Path) -> None:
    policy = Policy(tiny_base, SETTINGS)
    one = Trainer(policy, TransformersEngine(policy), SETTINGS.model_copy(update={"thumb_weight": 1.0, "rollout_weight": 0.0}))
    live = [labelled(1, "warm leaves", verdict=1.0), labelled(2, "cold stones", verdict=0.0), labelled(3, "no thumb", comments=("hm",))]
    figures = one.step([ASKED], lambda pairs: [0.5] * len(pairs), live).metrics
    assert figures["thumb_answers"] == 2
    assert figures["thumb_margin_nats"] == pytest.approx(0.0, abs=1e-4)  # a fresh adapter is the base
    assert figures["thumb_loss"] == pytest.approx(0.5, abs=1e-4)  # two answers, each weighted 1, no gain yet: 1 - sigmoid(0)


def test_one_thumb_up_among_many_down_counts_as_much_as_all_of_them(tiny_base: Path) -> None:
    policy = Policy(tiny_base, SETTINGS)
    live = [labelled(n, "cold stones", verdict=0.0) for n in range(3)] + [labelled(9, "warm leaves", verdict=1.0)]
    objective = ThumbObjective(policy, SETTINGS.model_copy(update={"thumb_weight": 1.0}), live)
    objective.backward()
    # no gain yet: each loss is its weight / 2; weights 4 / (2 * 1) = 2 and 4 / (2 * 3) = 2/3: (2 + 3 * 2/3) / 2 / 4
    assert objective.metrics()["thumb_loss"] == pytest.approx(0.5, abs=1e-4)


def test_a_corrections_own_tokens_are_taught_and_a_comments_on_what_the_policy_says_once_it_is_told(tiny_base: Path) -> None:
    policy = Policy(tiny_base, SETTINGS)
    settings = SETTINGS.model_copy(update={"hindsight_weight": 1.0, "hindsight_samples": 3})
    one = Trainer(policy, TransformersEngine(policy), settings)
    corrected, commented = labelled(1, correction="You drink it."), labelled(2, comments=("Say you.",))
    found = one._taught_on([corrected, commented])
    assert found[0] == (policy.answer_ids("You drink it.", True, 99),)
    assert len(found[1]) == 3
    again = TransformersEngine(policy).sample([policy.prompt_ids(advised(commented))], 3, 6, 1.0, (1 << 31) + 0)
    assert found[1] == tuple(rollout.output_ids for rollout in again)
    on_the_answer = Trainer(policy, TransformersEngine(policy), settings.model_copy(update={"hindsight_on": "answer"}))
    assert on_the_answer._taught_on([commented]) == [(policy.answer_ids("warm leaves", True, 99),)]


def test_what_was_said_next_teaches_on_the_answer_as_it_was_given_never_on_one_made_up_since(tiny_base: Path) -> None:
    policy = Policy(tiny_base, SETTINGS)
    settings = SETTINGS.model_copy(update={"hindsight_weight": 1.0, "rollout_weight": 0.0, "hindsight_replies": True})
    one, live = Trainer(policy, TransformersEngine(policy), settings), [labelled(1, replies=("I meant warm leaves in the rain.",))]
    assert one._taught_on(live) == [(policy.answer_ids("warm leaves", True, 99),)]


def test_the_teacher_gets_no_gradient_and_passes_add_up(tiny_base: Path) -> None:
    policy = Policy(tiny_base, SETTINGS)
    live = [labelled(1, comments=("Speak of rain.",)), labelled(2, "cold stones", comments=("Speak of warm leaves, and at length.",))]
    outputs = [(policy.answer_ids(one.answer, True, 99),) for one in live]
    gradients: list[list[torch.Tensor]] = []
    for tokens in (1, 100_000):
        objective = HindsightObjective(policy, SETTINGS.model_copy(update={"hindsight_weight": 0.5, "microbatch_tokens": tokens}), live, outputs)
        for weight in policy.parameters.values():
            weight.grad = None
        objective.backward()
        gradients.append([weight.grad.clone() for weight in policy.parameters.values() if weight.grad is not None])
    norm = sum(float((one**2).sum()) for one in gradients[0]) ** 0.5
    gap = sum(float(((one - other) ** 2).sum()) for one, other in zip(*gradients, strict=True)) ** 0.5
    assert norm > 0
    assert gap < 1e-3 * norm


def test_the_base_as_teacher_says_what_the_base_says_however_far_the_policy_has_moved(tiny_base: Path) -> None:
    settings = SETTINGS.model_copy(update={"hindsight_weight": 1.0})
    policy, one = Policy(tiny_base, settings), labelled(1, correction="Tea is a drink.")
    output = policy.answer_ids("Tea is a drink.", True, 99)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters.values():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.1)
        student_KV, moved_KV = (
            policy.distributions(pack([Branches(policy.prompt_ids(asked), (output,))], 2)) for asked in (one.prompt, advised(one))
        )
        with policy.reference():
            base_KV = policy.distributions(pack([Branches(policy.prompt_ids(advised(one)), (output,))], 2))

    found = {}
    for teacher in ("policy", "base"):
        objective = HindsightObjective(policy, settings.model_copy(update={"hindsight_teacher": teacher}), [one], [(output,)])
        objective.backward()
        found[teacher] = objective.metrics()["hindsight_kl_nats"]

    expected = {name: float(distillation_kl(of, student_KV).mean()) for name, of in (("policy", moved_KV), ("base", base_KV))}
    assert found == pytest.approx(expected, rel=1e-3)
    assert abs(expected["base"] - expected["policy"]) > 0.1 * expected["policy"]


def test_without_weights_nobody_is_asked_and_what_people_said_changes_no_bit(tiny_base: Path) -> None:
    def adapter(live: Sequence[LabelledAnswer]) -> list[torch.Tensor]:
        policy = Policy(tiny_base, SETTINGS)
        Trainer(policy, TransformersEngine(policy), SETTINGS).step([ASKED], lambda pairs: [float(len(answer)) for _, answer in pairs], live)
        return [weight.detach() for weight in policy.parameters.values()]

    assert all(torch.equal(one, other) for one, other in zip(adapter([labelled(1, verdict=1.0, comments=("Say you.",))]), adapter([]), strict=True))
    assert not SETTINGS.learns_from_labels
    with pytest.raises(ValidationError, match="nothing would be learned from"):
        LearnerSettings(rollout_weight=0.0)
