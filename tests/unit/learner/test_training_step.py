"""Steps, checkpoints and prompts on the tiny base: real sampling, real gradients, no network."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from learner.models.lora_policy import Policy
from learner.objectives.rollout_objective import RolloutObjective, groups_that_pay
from learner.ring.prompt_pool import PromptPool
from learner.rollouts.rollout_engines import Rollout, TransformersEngine
from learner.runs import checkpoint
from learner.runs.step_progress import LearnerProgress, StepTeller
from learner.runs.trainer import Prompt, Trainer
from learner.settings import LearnerSettings
from streams.core.errors import BadArtifact, InvalidEvent, StalePolicy
from streams.core.events import Episode, Message, Outcome

pytestmark = pytest.mark.usefixtures("torch_threads")
SETTINGS = LearnerSettings(dtype="float32", max_output_tokens=8, prompts_per_step=3, samples_per_prompt=4, learning_rate=0.01)


@pytest.fixture
def base(tiny_base: Path) -> Path:
    return tiny_base


def prompts(*questions: str) -> list[Prompt]:
    return [(Message(role="user", content=question),) for question in questions]


ASKED = prompts("What is tea?", "Tell me about the moon, please.", "Why do whales sing?")


def says_e(pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
    return [sum("e" in word for word in answer.split()) / max(1, len(answer.split())) for _, answer in pairs]


def trainer(base: Path, settings: LearnerSettings = SETTINGS) -> Trainer:
    policy = Policy(base, settings)
    return Trainer(policy, TransformersEngine(policy), settings)


def test_the_engines_logprobs_are_those_of_the_distribution_it_sampled(base: Path) -> None:
    one = trainer(base, SETTINGS.model_copy(update={"temperature": 0.6}))
    metrics = one.step(ASKED, says_e).metrics
    assert metrics["engine_ratio_mean"] == pytest.approx(1.0, abs=1e-4)  # float32, same weights: sampler and trainer agree
    assert metrics["engine_ratio_max"] == pytest.approx(1.0, abs=1e-3)
    assert metrics["effective_sample_ratio"] == pytest.approx(1.0, abs=1e-5)


def test_a_group_shares_its_prompt_and_ends_at_the_end_token_or_the_limit(base: Path) -> None:
    policy = Policy(base, SETTINGS)
    engine = TransformersEngine(policy)
    engine.adopt(policy, 7)
    asked = [(1, 5, 9), (1, 800, 33, 21, 4)]
    found = engine.sample(asked, samples=16, max_output_tokens=12, temperature=1.0, seed=5)
    assert [r.prompt_ids for r in found] == [asked[0]] * 16 + [asked[1]] * 16
    assert {r.finish for r in found} == {"stop", "cut"}
    for rollout in found:
        assert len(rollout.output_ids) == len(rollout.behaviour_logprobs)
        assert rollout.policy_version == 7
        assert (rollout.output_ids[-1] == policy.eos_id) == (rollout.finish == "stop")
        assert policy.eos_id not in rollout.output_ids[:-1]
        assert rollout.finish == "stop" or len(rollout.output_ids) == 12
    assert len({r.output_ids for r in found}) > 16  # rows differ
    assert engine.sample(asked, samples=16, max_output_tokens=12, temperature=1.0, seed=5) == found


def test_sampling_follows_the_policys_own_distribution(base: Path) -> None:
    """The first token's frequencies against its probabilities: a wrong row, position or temperature would show."""
    policy = Policy(base, SETTINGS)
    found = TransformersEngine(policy).sample([(1, 5, 9), (1, 7)], samples=400, max_output_tokens=1, temperature=0.3, seed=0)
    with torch.no_grad():
        probabilities = torch.softmax(policy.causal_lm(torch.tensor([[1, 7]])).logits[0, -1] / 0.3, -1)
    likeliest = int(probabilities.argmax())
    share = sum(r.output_ids[0] == likeliest for r in found[400:]) / 400
    expected = float(probabilities[likeliest])
    assert expected > 0.02
    assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 400) ** 0.5)


def test_a_step_may_train_on_the_best_and_the_worst_alone(base: Path) -> None:
    """Rewards of four answers are 0.5, 0, 1 and 0.5: the step is that of an engine which gave the second and the third alone."""
    answers = [(500, 600, 2), (700, 2), (800, 900, 5, 2), (44, 2)]
    given = SETTINGS.model_copy(update={"kl_coefficient": 0.0, "max_gradient_norm": 1e9})
    policies = [Policy(base, SETTINGS) for _ in range(2)]
    settings = given.model_copy(update={"samples_per_prompt": 4, "trained_per_prompt": 2})
    of_four = Trainer(policies[0], Fixed(answers, claimed=-8.0), settings).step(ASKED[:1], lambda _: [0.5, 0.0, 1.0, 0.5]).metrics
    settings = given.model_copy(update={"samples_per_prompt": 2})
    of_two = Trainer(policies[1], Fixed(answers[1:3], claimed=-8.0), settings).step(ASKED[:1], lambda _: [0.0, 1.0]).metrics
    assert (of_four["reward_mean"], of_two["reward_mean"]) == (0.5, 0.5)  # told of all that were sampled
    assert of_four["output_tokens"] == 11
    assert of_four["train_tokens"] == of_two["train_tokens"]
    assert of_four["gradient_norm"] == pytest.approx(of_two["gradient_norm"], rel=1e-4)
    for (name, one), other in zip(policies[0].parameters.items(), policies[1].parameters.values(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)
    with pytest.raises(ValidationError, match="trained_per_prompt"):
        LearnerSettings(samples_per_prompt=4, trained_per_prompt=5)


def test_equal_rewards_leave_the_adapter_where_it_was_but_for_the_pull_to_the_base(base: Path) -> None:
    one = trainer(base)
    before = {name: weight.clone() for name, weight in one.policy.parameters.items()}
    metrics = one.step(ASKED, lambda pairs: [0.5] * len(pairs)).metrics
    assert metrics["gradient_norm"] < 1e-5  # a fresh adapter is the base: no pull either
    assert metrics["kl_nats"] == pytest.approx(0.0, abs=1e-5)
    assert before.keys() == one.policy.parameters.keys()


def test_the_loss_does_not_depend_on_how_a_step_is_cut_into_microbatches(base: Path) -> None:
    gradients = []
    for tokens in (1, 100_000):
        one = trainer(base, SETTINGS.model_copy(update={"microbatch_tokens": tokens, "max_gradient_norm": 1e9}))
        gradients.append(one.step(ASKED, says_e).metrics["gradient_norm"])
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-3)
    assert gradients[0] > 0


def test_the_kls_pull_grows_with_its_coefficient(base: Path) -> None:
    """Rewards are equal, so the gradient is the KL's alone: at three times the weight it is three times as large."""
    norms = {}
    for coefficient in (1.0, 3.0):
        settings = SETTINGS.model_copy(update={"samples_per_prompt": 2, "kl_coefficient": coefficient, "max_gradient_norm": 1e9})
        one = Trainer(moved(base, settings), Fixed([(500, 600, 2), (700, 800, 900, 2)], claimed=-8.0), settings)
        norms[coefficient] = one.step(ASKED, lambda pairs: [0.5] * len(pairs)).metrics["gradient_norm"]
    assert norms[1.0] > 1e-3
    assert norms[3.0] == pytest.approx(3 * norms[1.0], rel=1e-3)


def moved(base: Path, settings: LearnerSettings) -> Policy:
    """A policy whose adapter is not zero."""
    policy, draw = Policy(base, settings), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters.values():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.05)
    return policy


def test_over_the_steps_every_group_pays_its_kl_as_often() -> None:
    turns = [sorted(groups_that_pay(8, 0.25, step)) for step in range(4)]
    assert turns == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert groups_that_pay(8, 1.0, 3) == set(range(8))


def test_a_part_of_the_groups_pays_for_all(base: Path) -> None:
    """Three equal groups: one of them, scaled up, pulls as all three do."""
    norms = {}
    for ratio in (0.33, 1.0):
        settings = SETTINGS.model_copy(update={"samples_per_prompt": 2, "kl_coefficient": 1.0, "kl_groups_ratio": ratio, "max_gradient_norm": 1e9})
        one = Trainer(moved(base, settings), Fixed([(500, 600, 2), (700, 800, 900, 2)], claimed=-8.0), settings)
        metrics = one.step(ASKED[:1] * 3, lambda pairs: [0.5] * len(pairs)).metrics
        assert metrics["kl_nats"] > 0.01
        norms[ratio] = (metrics["gradient_norm"], metrics["kl_nats"])
    assert norms[0.33] == pytest.approx(norms[1.0], rel=1e-3)


class Fixed:
    """An engine that always returns the same rollouts, with the logprobs it is told to claim."""

    name = "fixed"

    def __init__(self, outputs: Sequence[tuple[int, ...]], claimed: float) -> None:
        self._outputs, self._claimed = outputs, claimed

    def adopt(self, policy: Policy, version: int) -> None: ...

    def rest(self) -> None: ...

    def sample(self, prompts: Sequence[tuple[int, ...]], samples: int, max_output_tokens: int, *_: object) -> list[Rollout]:
        cut = [o for _ in prompts for o in self._outputs]
        asked = [p for p in prompts for _ in self._outputs]
        return [
            Rollout(p, o, (self._claimed,) * len(o), "cut" if len(o) == max_output_tokens else "stop", 0) for p, o in zip(asked, cut, strict=True)
        ]

    def close(self) -> None: ...


def test_cut_and_empty_rollouts_are_paid_as_the_settings_say(base: Path) -> None:
    settings = SETTINGS.model_copy(update={"cut_penalty": 0.25, "empty_reward": -1.0, "samples_per_prompt": 3})
    policy = Policy(base, settings)
    engine = Fixed([(500, 600, 2), (500,) * 8, (2,)], claimed=-8.0)
    result = Trainer(policy, engine, settings).step(prompts("What is tea?"), lambda pairs: [0.5] * len(pairs))
    assert result.rewards == pytest.approx((0.5, 0.25, -1.0))
    assert result.metrics["cut_ratio"] == pytest.approx(1 / 3)


def test_a_token_the_engine_thought_likelier_counts_less_and_no_token_counts_more_than_the_cap(base: Path) -> None:
    norms = {}
    for claimed in (0.0, -1000.0):  # the engine was sure; the engine thought it impossible
        settings = SETTINGS.model_copy(update={"samples_per_prompt": 2, "kl_coefficient": 0.0, "max_gradient_norm": 1e9, "importance_cap": 2.0})
        policy = Policy(base, settings)
        one = Trainer(policy, Fixed([(500, 600, 2), (700, 800, 2)], claimed), settings)
        norms[claimed] = one.step(prompts("What is tea?"), lambda pairs: [1.0, 0.0]).metrics["gradient_norm"]
    assert 0 < norms[0.0] < norms[-1000.0] / 10
    assert norms[-1000.0] < 1e3


def test_what_engine_and_trainer_disagree_on_beyond_the_range_teaches_nothing(base: Path) -> None:
    for importance in ("token", "sequence"):
        updates = {"samples_per_prompt": 2, "kl_coefficient": 0.0, "importance_ceiling": 5.0, "importance": importance}
        settings = SETTINGS.model_copy(update=updates)
        policy = Policy(base, settings)
        engine = Fixed([(500, 600, 2), (700, 800, 2)], claimed=-1000.0)
        metrics = Trainer(policy, engine, settings).step(prompts("What is tea?"), lambda pairs: [1.0, 0.0]).metrics
        assert metrics["left_out_ratio"] == 1.0
        assert metrics["gradient_norm"] == 0.0
    with pytest.raises(ValidationError, match="importance_ceiling"):
        LearnerSettings(importance_ceiling=0.5)


def test_a_group_with_a_rollout_that_is_too_old_is_dropped_and_counted(base: Path) -> None:
    class Late(TransformersEngine):
        def sample(self, *arguments: Any) -> list[Rollout]:
            found = super().sample(*arguments)
            return [replace(rollout, policy_version=1) if 4 <= n < 6 else rollout for n, rollout in enumerate(found)]

    settings = SETTINGS.model_copy(update={"max_policy_lag": 2})
    policy = Policy(base, settings)
    one = Trainer(policy, Late(policy), settings)
    one.step_number = 3
    assert one.step(ASKED, says_e).metrics["stale_rollouts"] == 0  # two steps behind is young enough
    found = one.step(ASKED, says_e)
    assert found.metrics["stale_rollouts"] == 4
    assert len(found.rollouts) == 8
    with pytest.raises(StalePolicy, match="max_policy_lag = 2"):
        one._fresh(ASKED[1:2], [replace(rollout, policy_version=1) for rollout in found.rollouts[:4]])


def test_two_steps_straight_equal_one_step_a_checkpoint_and_one_more_bit_for_bit(base: Path, tmp_path: Path) -> None:
    straight = trainer(base)
    for _ in range(2):
        straight.step(ASKED, says_e)
    first = trainer(base)
    first.step(ASKED, says_e)
    checkpoint.save(first, tmp_path)
    second = trainer(base)
    assert checkpoint.load(second, tmp_path) == 1
    second.step(ASKED, says_e)
    assert second.step_number == 2
    for (name, one), other in zip(straight.policy.parameters.items(), second.policy.parameters.values(), strict=True):
        assert torch.equal(one, other), name


def test_ppos_value_head_survives_a_restart_bit_for_bit(base: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"advantage": "gae", "kl_coefficient": 0.0})
    one = trainer(base, settings)
    for _ in range(2):
        one.step(ASKED, says_e)
    checkpoint.save(one, tmp_path)
    expected = one.step(ASKED, says_e)
    assert one.value_head is not None
    assert one.value_head.fits == 3
    assert not [p for p in tmp_path.rglob("*") if "value" in p.name and p.name != checkpoint.VALUE_HEAD]
    again = trainer(base, settings)
    checkpoint.load(again, tmp_path)
    last = again.step(ASKED, says_e)
    assert {k: v for k, v in last.metrics.items() if not k.endswith("_s")} == {k: v for k, v in expected.metrics.items() if not k.endswith("_s")}
    assert all(torch.equal(a, b) for a, b in zip(one.policy.parameters.values(), again.policy.parameters.values(), strict=True))
    with pytest.raises(ValidationError, match="one advantage per sequence"):
        LearnerSettings(advantage="gae", surrogate="gspo")


def test_the_kls_weight_is_steered_by_the_kl_of_each_step_and_survives_a_restart(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The KLs are given. The target is 0.1 nats: 0.3 is far above (+ 20 %), 0.15 by half (+ 10 %), 0.05 below by half (- 10 %)."""
    measured, given = RolloutObjective.metrics, iter([0.3, 0.15, 0.05, 0.1])
    monkeypatch.setattr(RolloutObjective, "metrics", lambda objective: measured(objective) | {"kl_nats": next(given)})
    settings = SETTINGS.model_copy(update={"samples_per_prompt": 2, "kl_coefficient": 0.5, "kl_target_nats": 0.1})
    engine = Fixed([(500, 600, 2), (700, 2)], claimed=-8.0)
    steered = Trainer(Policy(base, settings), engine, settings)
    seen = [steered.step(ASKED[:1], says_e).metrics["kl_coefficient"] for _ in range(3)]
    assert seen == pytest.approx([0.5, 0.6, 0.66])  # a step pays by the KLs before it
    assert steered.kl_coefficient == pytest.approx(0.594)
    checkpoint.save(steered, tmp_path)
    again = Trainer(Policy(base, settings), engine, settings)
    checkpoint.load(again, tmp_path)
    assert again.kl_coefficient == steered.kl_coefficient
    free = Trainer(Policy(base, settings), engine, settings.model_copy(update={"kl_target_nats": 0.0}))
    free.step(ASKED[:1], says_e)
    assert free.kl_coefficient == 0.5


def test_the_newest_checkpoint_replaces_those_before_it_and_a_broken_one_says_what_to_do(base: Path, tmp_path: Path) -> None:
    one = trainer(base)
    assert checkpoint.load(one, tmp_path / "none") == 0
    for _ in range(2):
        one.step(ASKED, says_e)
        (tmp_path / ".half-written").mkdir(exist_ok=True)
        checkpoint.save(one, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["00000002"]
    (tmp_path / "00000002" / checkpoint.OPTIMIZER).write_bytes(b"rubbish")
    with pytest.raises(BadArtifact, match="delete it"):
        checkpoint.load(trainer(base), tmp_path)


class Killed(BaseException):
    """In place of SIGKILL: nobody catches it, and nothing is tidied up."""


def test_a_kill_at_any_point_of_writing_a_checkpoint_leaves_the_one_before_it_or_the_new_one_whole(base: Path, tmp_path: Path) -> None:
    old, new = trainer(base), trainer(base)
    old.step(ASKED, says_e)
    for _ in range(2):
        new.step(ASKED, says_e)
    wanted = {one.step_number: {name: weight.detach().clone() for name, weight in one.policy.parameters.items()} for one in (old, new)}
    again, found = trainer(base), []
    for kept in range(12):  # calls that write, rename or delete before the one that is not reached
        folder = tmp_path / str(kept)
        checkpoint.save(old, folder)
        with pytest.MonkeyPatch.context() as patch:
            left = iter(range(kept))

            def reached(call: Callable[..., Any], left: Iterator[int] = left) -> Callable[..., Any]:
                def counted(*given: Any, **named: Any) -> Any:
                    if next(left, None) is None:
                        raise Killed
                    return call(*given, **named)

                return counted

            patch.setattr(checkpoint, "save_file", reached(checkpoint.save_file))
            for of, name in ((Path, "write_text"), (Path, "write_bytes"), (Path, "rename"), (Path, "mkdir"), (checkpoint.shutil, "rmtree")):
                patch.setattr(of, name, reached(getattr(of, name)))
            with suppress(Killed):
                checkpoint.save(new, folder)
        found.append(checkpoint.load(again, folder))
        assert all(torch.equal(weight, wanted[found[-1]][name]) for name, weight in again.policy.parameters.items())
    assert found == sorted(found)
    assert {*found} == {1, 2}


def episode(question: str, **fields: object) -> Episode:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    return Episode.model_validate(
        {"episode_id": question, "messages": [{"role": "user", "content": question}], "answer": "x", "started_at": at, "ended_at": at} | fields
    )


def asked(pool: PromptPool) -> set[str]:
    return {prompt[-1].text for prompt in pool.choose(1000, 0, 0)}


def test_the_pool_holds_the_latest_distinct_prompts_of_its_policy(tmp_path: Path) -> None:
    pool = PromptPool("default", kept=3)
    for question in ("a", "b", "c", "a", "d"):
        pool.add(episode(question))
    assert asked(pool) == {"c", "a", "d"}  # b was the oldest: asking a again made it recent
    pool.add(episode("e", policy="other"))
    pool.add(episode("f", outcome=Outcome.FAILED))
    pool.add(episode("g", messages=[{"role": "assistant", "content": "hi"}]))
    assert asked(pool) == {"c", "a", "d"}
    pool.save(tmp_path / "prompts.json")
    again = PromptPool("default", kept=3)
    again.load(tmp_path / "prompts.json")
    assert again.choose(2, seed=1, step=5) == pool.choose(2, seed=1, step=5)
    assert len(again) == 3


def test_a_prompt_that_is_too_long_does_not_fit(base: Path) -> None:
    one = trainer(base, SETTINGS.model_copy(update={"max_prompt_tokens": 60}))
    assert one.fits(ASKED[0])
    assert not one.fits(prompts("word " * 100)[0])


def test_a_step_tells_its_phases_in_order_and_every_token_of_each(base: Path) -> None:
    clock, told = [0.0], list[LearnerProgress]()

    def later() -> float:
        clock[0] += 1.0  # so that everything is told
        return clock[0]

    settings = SETTINGS.model_copy(update={"updates_per_step": 2})
    policy = Policy(base, settings)
    one = Trainer(policy, TransformersEngine(policy), settings, StepTeller(told.append, later))
    for _ in range(2):
        metrics = one.step(ASKED, says_e).metrics
    second = [progress for progress in told if progress.step == 2]
    assert list(dict.fromkeys(progress.phase for progress in second)) == ["rollout", "score", "train"]
    last = {progress.phase: progress for progress in second}
    assert last["rollout"].done_tokens == last["rollout"].all_tokens == metrics["output_tokens"]
    assert last["train"].done_tokens == last["train"].all_tokens == metrics["train_tokens"]
    assert all(progress.done_tokens <= progress.all_tokens and progress.left_s is not None for progress in second)
    assert second[-1].left_s == 0


STRICT = (
    "{%- for m in messages -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must take turns') }}{%- endif -%}"
    "{{ m['role'] + ': ' + m['content'] }}{%- endfor -%}"
)


@pytest.mark.parametrize("template", [STRICT, "{{ messages[0].parts.text.more }}", "{{ 1 / 0 }}", "{{ messages[0]['content'] + 1 }}"])
def test_a_prompt_that_the_chat_template_refuses_is_left_out_and_kills_nothing(base: Path, template: str) -> None:
    one = trainer(base)
    one.policy.tokenizer.chat_template = template
    twice = (*ASKED[0], *ASKED[0])
    assert one.why_not(twice) == "template"
    assert not one.fits(twice)
    with pytest.raises(InvalidEvent, match="chat template refuses these roles"):
        one.policy.prompt_ids(twice)
    assert one.fits(ASKED[0]) == (template == STRICT)
