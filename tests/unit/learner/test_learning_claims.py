"""Claims about learning: what several steps achieve.

`make test-processors` tries each with ten seeds, in float32 and bfloat16, with one thread and two, on this processor's kernels and on those of one
without AVX-512: 80 runs. So far, on an AMD EPYC with one thread: the KL, thumbs, words and the value head with ten seeds on both kernels (40 runs),
the reward with five seeds on its own kernels (10 runs). Two threads were not tried.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_labelled_answers import labelled
from test_labelled_answers import logprob as logprob_of
from test_training_step import ASKED, Fixed, says_e

from learner.models.lora_policy import Policy
from learner.models.value_head import ValueHead
from learner.rollouts.rollout_engines import TransformersEngine
from learner.runs.trainer import Prompt, Trainer
from learner.settings import LearnerSettings
from tests.support.processors import Claim

pytestmark = [pytest.mark.learning, pytest.mark.usefixtures("torch_threads")]


@pytest.fixture
def settings(seed: int, precision: str) -> LearnerSettings:
    return LearnerSettings(
        dtype=precision, seed=seed, max_output_tokens=8, prompts_per_step=3, samples_per_prompt=8, learning_rate=0.01, kl_coefficient=0.0
    )


def trainer(base: Path, settings: LearnerSettings) -> Trainer:
    policy = Policy(base, settings)
    return Trainer(policy, TransformersEngine(policy), settings)


def indifferent(pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
    return [0.5] * len(pairs)


@pytest.mark.parametrize("how", [{"advantage": "grpo"}, {"advantage": "gae"}, {"trained_per_prompt": 4}], ids=["grpo", "ppo", "best-and-worst"])
def test_steps_raise_the_reward_that_they_are_given(tiny_base: Path, settings: LearnerSettings, how: dict[str, object], claim: Claim) -> None:
    one = trainer(tiny_base, settings.model_copy(update=how))
    rewards = [one.step(ASKED, says_e).metrics["reward_mean"] for _ in range(8)]
    claim(f"reward gained in 8 steps, {how}", sum(rewards[-2:]) / 2 - sum(rewards[:2]) / 2, 0.1)


def test_the_kl_pulls_a_policy_back_to_its_base(tiny_base: Path, settings: LearnerSettings, seed: int, claim: Claim) -> None:
    settings = settings.model_copy(
        update={"samples_per_prompt": 2, "kl_coefficient": 1.0, "kl_groups_ratio": 1.0, "max_policy_lag": 9, "learning_rate": 5e-5}
    )
    policy, draw = Policy(tiny_base, settings), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters.values():
            weight.copy_(torch.randn(weight.shape, generator=draw) * 0.02)
    one = Trainer(policy, Fixed([(500, 600, 2), (700, 800, 900, 2)], claimed=-8.0), settings)
    far = [one.step(ASKED, indifferent).metrics["kl_nats"] for _ in range(9)]
    claim("part of the KL that 8 steps take back", 1 - far[-1] / far[0], 0.1)


def test_thumbs_make_good_live_answers_likelier_and_bad_ones_less_likely(tiny_base: Path, settings: LearnerSettings, claim: Claim) -> None:
    one = trainer(tiny_base, settings.model_copy(update={"thumb_weight": 1.0, "rollout_weight": 0.0, "samples_per_prompt": 2}))
    live = [labelled(1, "warm leaves", verdict=1.0), labelled(2, "cold stones", verdict=0.0)]
    before = logprob_of(one.policy, "warm leaves"), logprob_of(one.policy, "cold stones")
    for _ in range(4):
        one.step(ASKED[:1], indifferent, live)
    claim("nats gained by an answer with a thumb up", logprob_of(one.policy, "warm leaves") - before[0], 1.0)
    claim("nats lost by an answer with a thumb down", before[1] - logprob_of(one.policy, "cold stones"), 1.0)


@pytest.mark.parametrize("said", ["comments", "replies"])
def test_the_policy_that_was_told_teaches_the_one_that_was_not(tiny_base: Path, settings: LearnerSettings, said: str, claim: Claim) -> None:
    """On the tokens of the answer as it was given."""
    how = {"hindsight_weight": 1.0, "rollout_weight": 0.0, "hindsight_on": "answer", "hindsight_replies": True, "learning_rate": 0.003}
    one = trainer(tiny_base, settings.model_copy(update=how | {"samples_per_prompt": 2}))
    live = [labelled(1, **{said: ("I meant warm leaves in the rain.",)})]
    seen = [one.step(ASKED[:1], indifferent, live).metrics["hindsight_kl_nats"] for _ in range(6)]
    claim(f"part of the distance to who was told {said} that 5 steps close", 1 - seen[-1] / seen[0], 0.2)


def test_a_value_head_learns_what_positions_are_worth(seed: int, precision: str, claim: Claim) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(200, 16, generator=draw) * 30).to(getattr(torch, precision))
    returns = (hidden[:, 0] > 0).float()
    head = ValueHead(16, learning_rate=0.05)
    head.begin(0.3)
    errors = [head.fit(hidden, returns, updates=8) for _ in range(12)]
    claim("part of the value head's first error that 12 fits take away", 1 - errors[-1] / errors[0], 0.5)
