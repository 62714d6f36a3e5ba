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
from learner.ring.prompt_pool import PromptPool
from learner.rollouts.rollout_engines import TransformersEngine
from learner.runs.trainer import Prompt, Trainer
from learner.settings import LearnerSettings
from streams.core.chat_prompt import ChatPrompt
from streams.core.events import Episode, Label, Message

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


CALL = {"id": "c", "type": "function", "function": {"name": "brew", "arguments": '{"leaf": "oolong"}'}}
TOOL = {"type": "function", "function": {"name": "brew", "parameters": {}}}
TALK = (
    Message(role="user", content="Brew some."),
    Message(role="assistant", content="", tool_calls=(CALL,)),
    Message(role="tool", content="done", tool_call_id="c"),
)
KNOWS_CALLS = """{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% if enable_thinking is defined %}<{{ enable_thinking }}>{% endif %}\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_a_verdict_reaches_the_answers_that_led_to_it_until_it_is_withdrawn(tmp_path: Path) -> None:
    pool = LabelledPool("default", kept=5)
    talk = [m.model_dump(exclude_none=True) for m in (*TALK, Message(role="assistant", content="Done."), Message(role="user", content="Thanks!"))]
    led = [{"message": 3, "weight": 0.5}, {"message": 1, "weight": 0.25}]
    pool.update(label(1, {"kind": "thumb", "value": 0.0}, verdict=0.0, messages=talk, led_by=led, tools=[TOOL]))
    assert [(one.turn, one.weight, one.good, len(one.prompt)) for one in pool.choose(9)] == [
        (None, 1.0, False, 5),
        (3, 0.5, False, 3),
        (1, 0.25, False, 1),
    ]
    step = next(one for one in pool.choose(9) if one.turn == 1)
    assert (step.tool_calls, step.prompt) == ((CALL,), ChatPrompt(TALK[:1], (TOOL,)))
    pool.save(tmp_path / "judged.json")
    again = LabelledPool("default", kept=5)
    again.load(tmp_path / "judged.json")
    assert [one.said for one in again.choose(9)] == [one.said for one in pool.choose(9)]
    pool.update(label(2, {"kind": "thumb", "value": 1.0}, verdict=1.0, messages=talk[:3], answer="Done. ", tools=[TOOL]))
    assert {(one.episode_id, one.turn, one.good) for one in pool.choose(9)} == {("ep-1", None, False), ("ep-1", 1, False), ("ep-2", None, True)}
    pool.update(label(1))
    assert {one.episode_id for one in pool.choose(9)} == {"ep-2"}
    again.remove("ep-1")
    assert again.choose(9) == []


def test_an_answer_whose_prompt_cannot_be_rendered_again_is_not_taken_and_says_why() -> None:
    pool = LabelledPool("default", kept=5)
    thumb = {"kind": "thumb", "value": 1.0}
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "sha256:0"}}]}]
    assert pool.update(label(1, thumb, verdict=1.0, messages=image)) == "media"
    assert pool.update(label(2, thumb, verdict=1.0, unrenderable="own_template")) == "own_template"
    assert pool.update(label(3, thumb, verdict=1.0, answer="", tool_calls=[CALL])) is None
    assert pool.update(label(4, thumb, verdict=1.0, policy="other", unrenderable="own_template")) is None
    assert [(one.episode_id, one.tool_calls) for one in pool.choose(9)] == [("ep-3", (CALL,))]


def test_an_answer_with_calls_is_what_the_template_writes_after_the_prompt(tiny_base: Path) -> None:
    policy = Policy(tiny_base, SETTINGS)
    one = Trainer(policy, TransformersEngine(policy), SETTINGS)
    asked = ChatPrompt(TALK[:1], (TOOL,), {"enable_thinking": False})
    calling = labelled(1, "", prompt=asked, tool_calls=(CALL,), verdict=1.0)
    assert one.why_not_labelled(calling) == "tool_calls"  # the tiny base's template writes none: it would be learned as an empty answer
    policy.tokenizer.chat_template = KNOWS_CALLS
    assert one.why_not_labelled(calling) is None
    found = policy.reply_ids(asked, "", (CALL,), True, 999)
    assert policy.tokenizer.decode(found) == '<tool_call>{"name": "brew", "arguments": {"leaf": "oolong"}}</tool_call><|im_end|>'
    assert policy.reply_ids(asked, "", (CALL,), False, 999) == found[:-1]
    assert policy.reply_ids(asked, "Yes.", (), True, 999) == policy.answer_ids("Yes.", True, 999)
    said = policy.tokenizer.decode(policy.prompt_ids(asked))
    assert said == "[brew]<False><|im_start|>user\nBrew some.<|im_end|>\n<|im_start|>assistant\n"
    image = Message(role="user", content=({"type": "image_url", "image_url": {}},))
    assert (one.why_not((image,)), one.why_not(TALK)) == ("media", None)


def test_words_stand_beside_the_newest_question_also_where_a_tool_spoke_last() -> None:
    told = advised(labelled(1, prompt=ChatPrompt(TALK, (TOOL,)), comments=("Use green tea.",)))
    assert isinstance(told, ChatPrompt)
    assert [m.text for m in told] == ["Brew some.\n\nRemember: Use green tea.", "", "done"]
    assert told.tools == (TOOL,)


def test_a_discounted_thumb_counts_as_much_less(tiny_base: Path) -> None:
    policy = Policy(tiny_base, SETTINGS)
    live = [labelled(n, "cold stones", verdict=0.0, weight=w) for n, w in enumerate((1.0, 0.25, 0.25))] + [labelled(9, "warm leaves", verdict=1.0)]
    objective = ThumbObjective(policy, SETTINGS.model_copy(update={"thumb_weight": 1.0}), live)
    objective.backward()
    # no gain yet: each loss is its weights / 2. Weights sum to 2.5; good 2.5 / (2 * 1) = 1.25, bad 2.5 / (2 * 1.5) = 5/6: (1.25 + 1.5 * 5/6) / 2 / 4
    assert objective.metrics()["thumb_loss"] == pytest.approx(2.5 / 8, abs=1e-4)
    alone = ThumbObjective(policy, SETTINGS.model_copy(update={"thumb_weight": 1.0}), [live[1]])
    alone.backward()
    assert alone.metrics()["thumb_loss"] == pytest.approx(0.25 / 2, abs=1e-4)


def test_the_pool_keeps_prompts_apart_that_are_rendered_differently(tmp_path: Path) -> None:
    def asked(**fields: object) -> Episode:
        return Episode.model_validate(
            {"episode_id": "e", "messages": [{"role": "user", "content": "Tea?"}], "started_at": AT, "ended_at": AT} | fields
        )

    pool = PromptPool("default", 9)
    assert [pool.add(asked()), pool.add(asked(chat_template_kwargs={"enable_thinking": False})), pool.add(asked())] == [None] * 3
    assert pool.add(asked(api="completion")) == "completion"
    assert pool.add(asked(messages=[{"role": "user", "content": [{"type": "image_url"}]}])) == "media"
    assert pool.add(asked(tools=[TOOL])) is None
    assert len(pool) == 2
    pool.save(tmp_path / "prompts.json")
    again = PromptPool("default", 9, with_tools=True)
    assert again.load(tmp_path / "prompts.json")
    again.add(asked(tools=[TOOL], messages=[m.model_dump(exclude_none=True) for m in TALK]))
    assert sorted(isinstance(prompt, ChatPrompt) for prompt in again.choose(9, 0, 0)) == [False, True, True]
