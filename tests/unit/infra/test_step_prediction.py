"""How long a step will take, by rates so round that the sums can be done by hand."""

import pytest

from infra.machine.base_shape import BaseShape
from infra.machine.machine_rates import MachineRates, WorkRates
from infra.machine.step_prediction import STEP_OVERHEAD_S, answer_tokens_per_s, predicted_step, sized_for
from infra.settings.config import Settings, load

SHAPE = BaseShape(layers=10, hidden=8, intermediate=8, experts=4, experts_per_token=2, heads=2, key_heads=1, head_size=4, vocabulary=100)
RATE = WorkRates(
    dtype="bfloat16", threads=1, layer_pass_s=(0.002, 0.005), head_pass_s=(0.01, 0.01), packed_layer_pass_s=(0.001, 0.004),
    packed_head_pass_s=(0.01, 0.01), forward_token_s=1e-4, train_token_s=3e-4, head_token_s=1e-3, train_head_token_s=2e-3,
    feature_prompt_token_s=1e-5, feature_answer_s=1e-3,
)  # fmt: skip
RATES = MachineRates(processor="P", cores=1, quota=1.0, shape=SHAPE, rates=(RATE,))


def settings(*overrides: str) -> Settings:
    chosen = (
        *(
            "learner.dtype=bfloat16",
            "learner.threads=1",
            "learner.expert_layout=packed",
            "learner.prompts_per_step=5",
            "learner.samples_per_prompt=4",
        ),
        *("learner.max_output_tokens=32", "learner.kl_groups_ratio=0.5", "reward.last_layer_ratio=0.5", "actor.cpu_threads=1"),
    )
    return load(None, (*chosen, *overrides), {})


def test_a_step_is_reading_decoding_scoring_and_training() -> None:
    step = predicted_step(settings(), RATES, prompt_tokens=40)
    assert step is not None
    # 5 x 40 prompt tokens through 10 layers, 5 heads; 31 passes of 20 rows: 10 layers of 0.001 + 12 rows x 0.000125, and the head.
    assert step.rollout_s == pytest.approx(200 * 10 * 1e-4 + 5 * 1e-3 + 31 * (10 * 0.0025 + 0.01))
    # 5 of 10 layers: 200 prompt tokens and 20 answers of 32 tokens.
    assert step.score_s == pytest.approx(5 * (200 * 1e-5 + 20 * 1e-3))
    # 840 tokens and 640 output tokens; half of them once more without gradients.
    assert step.train_s == pytest.approx(840 * 10 * 3e-4 + 640 * 2e-3 + 0.5 * (840 * 10 * 1e-4 + 640 * 1e-3))
    assert step.total_s == pytest.approx(step.rollout_s + step.score_s + step.train_s + STEP_OVERHEAD_S)


def test_only_what_is_trained_on_is_paid_for_in_training() -> None:
    step = predicted_step(settings("learner.trained_per_prompt=2", "learner.kl_coefficient=0", "learner.updates_per_step=3"), RATES, prompt_tokens=40)
    assert step is not None
    assert step.train_s == pytest.approx(3 * (520 * 10 * 3e-4 + 320 * 2e-3))


def test_a_quota_stretches_everything() -> None:
    whole, half = (predicted_step(settings(), RATES.model_copy(update={"quota": quota})) for quota in (1.0, 0.5))
    assert whole is not None
    assert half is not None
    assert half.rollout_s == pytest.approx(2 * whole.rollout_s)
    assert half.score_s == pytest.approx(2 * whole.score_s)
    assert half.train_s == pytest.approx(2 * whole.train_s)


def test_answers_at_once_share_a_pass() -> None:
    assert answer_tokens_per_s(settings(), RATES, 8) == pytest.approx(8 / (10 * 0.001 + 0.01))


def test_a_gpu_is_not_predicted_and_changes_nothing() -> None:
    gpu = RATES.model_copy(update={"gpu": True, "rates": ()})
    assert predicted_step(settings(), gpu) is None
    assert sized_for(settings(), gpu, 1.0) == settings()


def test_a_fast_machine_keeps_the_settings() -> None:
    assert sized_for(settings(), RATES, minutes=60) == settings()


@pytest.mark.parametrize("minutes", [0.5, 1.0, 2.0, 3.0])
def test_a_sized_step_fits_or_is_the_smallest(minutes: float) -> None:
    before, after = settings(), sized_for(settings(), RATES, minutes)
    step = predicted_step(after, RATES)
    assert step is not None
    sizes = (after.learner.prompts_per_step, after.learner.samples_per_prompt, after.learner.max_output_tokens)
    assert 2 * 12 * step.total_s <= minutes * 60 or sizes == (2, 4, 16)
    assert sizes <= (before.learner.prompts_per_step, before.learner.samples_per_prompt, before.learner.max_output_tokens)


def test_less_time_means_smaller_steps_and_fewer_questions() -> None:
    sized = [sized_for(settings(), RATES, minutes) for minutes in (0.2, 1.0, 2.0, 4.0)]
    rollouts = [s.learner.prompts_per_step * s.learner.samples_per_prompt * s.learner.max_output_tokens for s in sized]
    assert rollouts == sorted(rollouts)
    assert rollouts[0] < rollouts[-1]
    questions = [s.people.held_out_questions for s in sized]
    assert questions == sorted(questions)
    assert questions[0] == 24
    assert questions[-1] == 48


def test_what_is_trained_on_never_exceeds_what_is_sampled() -> None:
    sized = sized_for(settings("learner.trained_per_prompt=4", "learner.samples_per_prompt=8"), RATES, 0.1)
    assert sized.learner.trained_per_prompt <= sized.learner.samples_per_prompt == 4
