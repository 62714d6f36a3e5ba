"""Predicts how long a training step and an answer take on this machine, from the rates that the probe measured.

Sizes: ``P`` prompts with ``S`` samples each, ``N`` tokens per prompt, ``T`` tokens per output. Times are for an otherwise idle machine;
while the ring runs, a step takes ``IN_THE_RING`` times as long.
"""

from dataclasses import dataclass

from infra.machine.machine_rates import ANSWER_TOKENS, MachineRates, WorkRates
from infra.settings.config import Settings
from learner.settings import LearnerSettings

PROMPT_TOKENS = 40
"""Tokens of a short question in SmolLM2's chat template, with system prompt."""
IN_THE_RING = 2.0
"""Ratio of a step's time with vLLM, reward updater and Kafka on the same cores to its time alone (measured on two cores)."""
STEP_OVERHEAD_S = 0.5
"""Fixed time per step: packing, decoding tokens, the checkpoint."""
STEPS_WANTED = 12
"""Steps that suffice to learn a preference with a dense reward (8 prompts x 4 samples: from 6 % to 97 %)."""
SMALLEST = (2, 4, 16)
"""Prompts, samples and output tokens: a smaller step teaches almost nothing."""
ASKING_RATIO = 0.1
"""Largest share of the time for one round of held-out questions; there are two."""
FEWEST_QUESTIONS = 24


@dataclass(frozen=True)
class PredictedStep:
    """Predicted seconds of a training step by phase, on an otherwise idle machine."""

    rollout_s: float
    score_s: float
    train_s: float

    @property
    def total_s(self) -> float:
        return self.rollout_s + self.score_s + self.train_s + STEP_OVERHEAD_S

    def __str__(self) -> str:
        return f"{self.total_s:.1f} s a step (rollout {self.rollout_s:.1f}, scoring {self.score_s:.1f}, training {self.train_s:.1f})"


def predicted_step(settings: Settings, rates: MachineRates, prompt_tokens: float = PROMPT_TOKENS) -> PredictedStep | None:
    """For settings without ``auto`` (``chosen_for`` in infra/machine/machine_choice.py). None on a GPU, which is not measured."""
    if rates.gpu or not rates.rates:
        return None
    learner = settings.learner
    sampling = rates.at(learner.precision, learner.threads or rates.cores)
    training = rates.at(learner.precision, learner.train_threads or sampling.threads)
    scoring = rates.at(settings.reward.precision, sampling.threads)
    prompts = learner.prompts_per_step / max(1, learner.workers // learner.model_parallel)
    return PredictedStep(
        rollout_s=rollout_s(learner, rates, sampling, prompts, prompt_tokens),
        score_s=score_s(settings, rates, scoring, prompts, prompt_tokens),
        train_s=train_s(learner, rates, training, prompts, prompt_tokens),
    )


def rollout_s(learner: LearnerSettings, rates: MachineRates, rate: WorkRates, prompts: float, prompt_tokens: float) -> float:
    """P prompts, then T - 1 decoding passes for P x S answers; no answer ends early."""
    shape, rows = rates.shape, prompts * learner.samples_per_prompt
    packed = learner.packs_weights and rate.packed_layer_pass_s is not None
    reading = prompts * prompt_tokens * shape.layers * rate.forward_token_s + prompts * rate.head_token_s
    return rates.stretch(rate.threads) * (reading + (learner.max_output_tokens - 1) * rate.decoding_s(shape, rows, packed))


def score_s(settings: Settings, rates: MachineRates, rate: WorkRates, prompts: float, prompt_tokens: float) -> float:
    """Features of P prompts and of P x S answers, one after the other."""
    learner, shape = settings.learner, rates.shape
    layers = max(1, round(shape.layers * max(settings.reward.mean_layer_ratio, settings.reward.last_layer_ratio)))
    answers = prompts * learner.samples_per_prompt * max(0.25, learner.max_output_tokens / ANSWER_TOKENS)
    return rates.stretch(rate.threads) * layers * (prompts * prompt_tokens * rate.feature_prompt_token_s + answers * rate.feature_answer_s)


def train_s(learner: LearnerSettings, rates: MachineRates, rate: WorkRates, prompts: float, prompt_tokens: float) -> float:
    """Forward and backward passes of P packed prompts with their outputs, per update; the base's forward pass when there is a KL penalty; and the
    passes over labelled live answers."""
    layers, samples = rates.shape.layers, learner.trained_per_prompt or learner.samples_per_prompt
    outputs = prompts * samples * learner.max_output_tokens
    tokens = prompts * prompt_tokens + outputs
    updates = learner.updates_per_step
    forward = learner.kl_groups_ratio * (tokens * layers * rate.forward_token_s + outputs * rate.head_token_s) if learner.kl_coefficient else 0.0
    backward = tokens * layers * rate.train_token_s + outputs * rate.train_head_token_s
    if learner.recompute_activations:
        backward += tokens * layers * rate.forward_token_s + outputs * rate.head_token_s
    if learner.learns_from_labels:
        labelled = learner.judged_per_step * min(learner.judged_tokens, learner.max_output_tokens)
        backward += (labelled + learner.judged_per_step * prompt_tokens) * layers * rate.train_token_s + labelled * rate.train_head_token_s
        forward += (labelled + learner.judged_per_step * prompt_tokens) * layers * rate.forward_token_s + labelled * rate.head_token_s
    return rates.stretch(rate.threads) * (forward + updates * backward)


def answer_tokens_per_s(settings: Settings, rates: MachineRates, at_once: int) -> float | None:
    """Tokens per second of the actor for ``at_once`` concurrent answers in total. None on a GPU."""
    if rates.gpu or not rates.rates:
        return None
    actor = settings.actor
    rate = rates.at("float32" if actor.dtype == "float32" else "bfloat16", actor.cpu_threads or rates.cores)
    packed = rate.packed_layer_pass_s is not None and (
        actor.expert_layout == "packed" or (actor.expert_layout == "auto" and rate.dtype == "bfloat16")
    )
    pass_s = rate.decoding_s(rates.shape, at_once, packed) * rates.stretch(rate.threads)
    return at_once / pass_s


def sized_for(settings: Settings, rates: MachineRates, minutes: float, steps: int = STEPS_WANTED) -> Settings:
    """The settings with steps small enough that ``steps`` of them fit into ``minutes`` while the ring runs, and with as many held-out
    questions as fit into a tenth of that time. Nothing becomes larger than set, and a step not smaller than ``SMALLEST``: on a very slow machine
    fewer steps fit. Unchanged on a GPU.
    """
    step, learner = predicted_step(settings, rates), settings.learner
    tokens_per_s = answer_tokens_per_s(settings, rates, settings.people.at_once)
    if step is None or tokens_per_s is None:
        return settings
    budget_s = minutes * 60 / steps / IN_THE_RING
    chosen = settings
    for prompts, samples, tokens in _sizes(learner):
        sized = {"prompts_per_step": prompts, "samples_per_prompt": samples, "max_output_tokens": tokens}
        if learner.trained_per_prompt > samples:
            sized["trained_per_prompt"] = samples
        chosen = settings.model_copy(update={"learner": learner.model_copy(update=sized)})
        step = predicted_step(chosen, rates)
        if step is not None and step.total_s <= budget_s:
            break
    asked = int(minutes * 60 * ASKING_RATIO * tokens_per_s / settings.people.answer_tokens)
    questions = min(settings.people.held_out_questions, max(FEWEST_QUESTIONS, asked))
    return chosen.model_copy(update={"people": settings.people.model_copy(update={"held_out_questions": questions})})


def _sizes(learner: LearnerSettings) -> list[tuple[int, int, int]]:
    """Candidate sizes (prompts, samples, output tokens) from the settings down to ``SMALLEST``. Prompts shrink first, then samples, then tokens: a
    group teaches by contrast between its samples, and truncated answers are no use."""
    sizes = [(learner.prompts_per_step, learner.samples_per_prompt, learner.max_output_tokens)]
    few_prompts, few_samples, few_tokens = (min(own, least) for own, least in zip(sizes[0], SMALLEST, strict=True))
    middle = max(few_prompts, min(3, learner.prompts_per_step))
    sizes += [(prompts, sizes[0][1], sizes[0][2]) for prompts in range(learner.prompts_per_step - 1, middle - 1, -1)]
    sizes += [(middle, samples, sizes[0][2]) for samples in range(learner.samples_per_prompt - 1, few_samples - 1, -1)]
    sizes += [(prompts, few_samples, sizes[0][2]) for prompts in range(middle - 1, few_prompts - 1, -1)]
    return sizes + [(few_prompts, few_samples, tokens) for tokens in range(learner.max_output_tokens - 4, few_tokens - 1, -4)]
