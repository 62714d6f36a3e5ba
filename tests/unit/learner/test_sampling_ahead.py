"""Rollouts sampled while the step before trains: by which policy, how old they may be, and what becomes of those that are not wanted."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from test_training_step import ASKED, SETTINGS, prompts, says_e

from learner.models.lora_policy import Policy
from learner.rollouts.engine_choice import make_engine
from learner.rollouts.rollout_engines import TransformersEngine
from learner.runs.trainer import Trainer
from learner.settings import LearnerSettings

OTHERS = prompts("What do bees do?", "Tell me about bread.", "Why is the sea salt?")
OVERLAPPING = SETTINGS.model_copy(update={"sample_ahead": True, "max_policy_lag": 1})


@pytest.fixture
def trainer(tiny_base: Path) -> Trainer:
    policy = Policy(tiny_base, OVERLAPPING)
    return Trainer(policy, make_engine(policy, OVERLAPPING), OVERLAPPING)


def test_the_next_steps_rollouts_come_from_the_policy_before_this_step_and_are_corrected_for_it(trainer: Trainer, tiny_base: Path) -> None:
    first = Policy(tiny_base, SETTINGS)
    expected = TransformersEngine(first).sample(
        [first.prompt_ids(p) for p in OTHERS], SETTINGS.samples_per_prompt, SETTINGS.max_output_tokens, 1.0, 1
    )
    one = trainer.step(ASKED, says_e, following=OTHERS)
    two = trainer.step(OTHERS, says_e, following=ASKED)
    assert (one.ahead, one.metrics["policy_lag"], two.ahead, two.metrics["policy_lag"]) == (False, 0.0, True, 1.0)
    assert [r.output_ids for r in two.rollouts] == [r.output_ids for r in expected]  # whatever the update did meanwhile
    assert {r.policy_version for r in two.rollouts} == {0}
    assert one.metrics["engine_ratio_max"] == pytest.approx(1.0, abs=1e-3)
    assert two.metrics["engine_ratio_max"] > 1.01  # the policy has moved since
    assert two.metrics["stale_rollouts"] == 0.0


def test_rollouts_for_other_prompts_or_of_too_old_a_policy_are_dropped_and_counted(trainer: Trainer) -> None:
    trainer.step(ASKED, says_e, following=OTHERS)
    other = trainer.step(ASKED, says_e, following=OTHERS)
    assert (other.ahead, other.metrics["policy_lag"], other.metrics["stale_rollouts"]) == (
        False,
        0.0,
        float(len(OTHERS) * SETTINGS.samples_per_prompt),
    )
    trainer.step_number += 1  # the policy is two steps further than the one that sampled them
    late = trainer.step(OTHERS, says_e)
    assert (late.ahead, late.metrics["policy_lag"], late.metrics["stale_rollouts"]) == (False, 0.0, float(len(OTHERS) * SETTINGS.samples_per_prompt))


def test_the_sampling_policy_is_a_copy_that_changes_only_when_it_is_told_to(trainer: Trainer) -> None:
    engine, policy = trainer.engine, trainer.policy
    ids = [policy.prompt_ids(ASKED[0])]
    with torch.no_grad():
        for weight in policy.parameters.values():
            weight.add_(0.3)
    before = engine.sample(ids, 4, 6, 1.0, seed=1)
    engine.adopt(policy, 5)
    after = engine.sample(ids, 4, 6, 1.0, seed=1)
    assert [r.behaviour_logprobs for r in before] != [r.behaviour_logprobs for r in after]
    assert {r.policy_version for r in after} == {5}


def test_settings_that_cannot_go_together_are_told() -> None:
    for wrong, said in (
        ({"workers": 3, "model_parallel": 2}, "does not divide"),
        ({"workers": 2, "model_parallel": 2, "sample_ahead": True}, "sample_ahead"),
        ({"max_policy_lag": 0, "sample_ahead": True}, "max_policy_lag"),
        ({"workers": 2, "model_parallel": 2, "engine": "vllm"}, "engine = vllm"),
        ({"workers": 2, "advantage": "gae"}, "gae"),
    ):
        with pytest.raises(ValidationError, match=said):
            LearnerSettings.model_validate(wrong)
