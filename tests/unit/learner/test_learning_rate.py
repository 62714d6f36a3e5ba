"""What people who train expect of the optimizer and of rewards: schedules, shaping and accumulation, by hand-computed values."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from learner.models.lora_policy import Policy
from learner.objectives.reward_shaping import overlong, shaped
from learner.objectives.rollout_objective import RolloutObjective
from learner.rollouts.rollout_engines import Rollout
from learner.runs.learning_rate import learning_rate
from learner.runs.optimizer_settings import OptimizerSettings
from learner.settings import LearnerSettings

pytestmark = pytest.mark.usefixtures("torch_threads")


def rates(steps: int, **settings: object) -> list[float]:
    made = OptimizerSettings.model_validate({"learning_rate": 0.8, "learning_rate_floor": 0.25} | settings)
    return [learning_rate(made, step) for step in range(1, steps + 1)]


def test_without_a_schedule_the_rate_is_the_setting_to_the_bit() -> None:
    assert rates(3) == [0.8, 0.8, 0.8]
    assert rates(6, warmup_steps=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_a_linear_rate_falls_in_equal_parts_to_its_floor() -> None:
    """0.8 at the end of two steps of warm-up, then down to 0.2 over four: 0.15 a step."""
    assert rates(8, warmup_steps=2, learning_rate_schedule="linear", schedule_steps=6) == pytest.approx([0.4, 0.8, 0.65, 0.5, 0.35, 0.2, 0.2, 0.2])


def test_a_cosine_rate_falls_as_half_a_wave() -> None:
    """0.2 + 0.6 * (1 + cos(pi p)) / 2 at p = 1/4, 1/2, 3/4, 1."""
    root = math.sqrt(0.5)
    expected = [0.2 + 0.6 * (1 + root) / 2, 0.5, 0.2 + 0.6 * (1 - root) / 2, 0.2, 0.2]
    assert rates(5, learning_rate_schedule="cosine", schedule_steps=4) == pytest.approx(expected)


def test_a_falling_rate_without_an_end_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"learner\.schedule_steps above learner\.warmup_steps = 5; it is 5"):
        LearnerSettings(learning_rate_schedule="cosine", warmup_steps=5, schedule_steps=5)


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (120, -1.0)])
def test_the_punishment_of_long_answers_is_soft(tokens: int, expected: float) -> None:
    """A limit of 100 and a margin of 20 (DAPO, eq. 13)."""
    assert overlong(tokens, limit=100, margin=20) == pytest.approx(expected)
    assert overlong(tokens, limit=100, margin=0) == 0.0


def test_a_reward_is_its_score_and_what_its_form_costs() -> None:
    settings = LearnerSettings(overlong_tokens=20, overlong_penalty=0.4, cut_penalty=0.3, empty_reward=-0.1, max_output_tokens=100)
    assert shaped(0.7, "So.", 50, False, 100, settings) == 0.7
    assert shaped(0.7, "So.", 90, False, 100, settings) == pytest.approx(0.7 - 0.5 * 0.4)
    assert shaped(0.7, "So.", 100, True, 100, settings) == pytest.approx(0.7 - 0.4 - 0.3)
    assert shaped(0.7, " ", 2, False, 100, settings) == -0.1
    with pytest.raises(ValidationError, match=r"learner\.overlong_tokens = 60 exceeds learner\.max_output_tokens = 48"):
        LearnerSettings(overlong_tokens=60)


def test_gradients_accumulated_over_microbatches_are_those_of_one_big_batch(tiny_base: Path) -> None:
    """In float32 within 1e-6, though groups are of unequal lengths: each token weighs the same, in whatever microbatch it is."""
    draw = torch.Generator().manual_seed(3)
    lengths = [(3, 9), (17, 2), (5, 5), (31, 1)]
    groups = [[tuple(torch.randint(3, 400, (n,), generator=draw).tolist()) for n in pair] for pair in lengths]
    rollouts = [Rollout((1, 5, 9 + k), out, (-1.0,) * len(out), "stop", 0) for k, group in enumerate(groups) for out in group]
    rewards_PG = torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.2, 0.9], [1.0, 0.0]])
    found: list[dict[str, torch.Tensor]] = []
    for tokens in (1, 40, 100_000):
        settings = LearnerSettings(dtype="float32", microbatch_tokens=tokens, samples_per_prompt=2, kl_groups_ratio=0.5)
        policy, again = Policy(tiny_base, settings), torch.Generator().manual_seed(7)
        with torch.no_grad():
            for weight in policy.parameters.values():
                weight += 0.02 * torch.randn(weight.shape, generator=again)
        objective = RolloutObjective(policy, settings, 0, 0.02, rollouts, rewards_PG)
        assert len(objective._passes) == {1: 4, 40: objective_passes(lengths, 40), 100_000: 1}[tokens]
        objective.backward()
        found.append({name: weight.grad for name, weight in policy.parameters.items() if weight.grad is not None})
    whole = found[-1]
    scale = max(float(grad.abs().max()) for grad in whole.values())
    assert scale > 1e-3
    for accumulated in found[:-1]:
        assert accumulated.keys() == whole.keys()
        assert max(float((accumulated[name] - whole[name]).abs().max()) for name in whole) < 1e-6 * max(1.0, scale)


def objective_passes(lengths: list[tuple[int, int]], limit: int) -> int:
    """Microbatches of groups that each have a prompt of three tokens, filled from the longest."""
    from learner.models.sequence_packing import Branches, microbatches

    return len(microbatches([Branches((1, 5, 9), tuple((4,) * n for n in pair)) for pair in lengths], limit))
