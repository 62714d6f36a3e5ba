"""Chooses precision, threads and layout from the measurement: here ``auto`` and 0 in the settings get their values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import psutil

from infra.machine.machine_rates import MachineRates, Precision, WorkRates
from infra.machine.step_prediction import PROMPT_TOKENS, answer_tokens_per_s, predicted_step, rollout_s, train_s
from infra.settings.config import Settings

PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")
MARGIN = 0.9
"""More threads, or an actor in another precision than the learner, must take at most this fraction of the time. On shared cores every additional
thread can cause waiting, and attestation is more precise when replica and learner compute in the same precision."""
SHARE_OF_MEMORY = 0.5
"""Largest share of free memory for all copies of the weights."""


@dataclass(frozen=True)
class MachineChoice:
    """Settings without ``auto``, and the reasons."""

    settings: Settings
    why: tuple[str, ...]
    """One sentence per choice."""
    rates: MachineRates | None = None
    """The measurement; None when the settings left nothing open."""


def learner_is_open(settings: Settings) -> bool:
    """True when the settings leave something about the learner open."""
    learner = settings.learner
    return "auto" in (learner.dtype, learner.expert_layout) or not (learner.threads or learner.ray_address)


def actor_is_open(settings: Settings) -> bool:
    """The same for the actor."""
    actor = settings.actor
    return "auto" in (actor.dtype, actor.expert_layout) or not actor.cpu_threads


def is_open(settings: Settings) -> bool:
    """The same for any part."""
    return learner_is_open(settings) or actor_is_open(settings) or settings.reward.dtype == "auto"


def chosen_for(settings: Settings, rates: MachineRates, free_bytes: int | None = None, apart: bool = False) -> MachineChoice:
    """The settings with values for every ``auto`` and 0. Explicit values stay.

    ``apart``: the part may run apart from the others, on another machine. All must compute features in the same precision, then bfloat16.
    ``free_bytes``: free memory; None: ask the system.
    """
    if rates.gpu or not rates.rates:
        why = "torch finds a GPU, so the processor was not measured" if rates.gpu else f"not measured ({rates.failure})"
        return MachineChoice(_unmeasured(settings), (f"learner and features: bfloat16: {why}",))
    free = psutil.virtual_memory().available if free_bytes is None else free_bytes
    fits = float32_fits(rates, free)
    learner, told = _learner(settings, rates, fits)
    settings = settings.model_copy(update={"learner": learner})
    actor, of_actor = _actor(settings, rates, fits)
    reward, of_reward = _reward(settings, rates, apart)
    if not fits:
        told = (*told, f"float32 was not considered: its weights need more than {SHARE_OF_MEMORY:.0%} of the {free / 2**30:.1f} GiB that are free")
    return MachineChoice(settings.model_copy(update={"actor": actor, "reward": reward}), (*told, *of_actor, *of_reward))


def float32_fits(rates: MachineRates, free_bytes: int) -> bool:
    """True when memory suffices for the base in float32 in learner and actor, with the learner's packed experts."""
    shape = rates.shape
    experts = 3 * shape.layers * shape.experts * shape.hidden * shape.intermediate
    return 4 * (2 * shape.weights + experts) <= SHARE_OF_MEMORY * free_bytes


def _unmeasured(settings: Settings) -> Settings:
    learner, reward = settings.learner, settings.reward
    return settings.model_copy(update={
        "learner": learner.model_copy(update={"dtype": learner.precision, "expert_layout": "packed" if learner.packs_weights else "plain"}),
        "reward": reward.model_copy(update={"dtype": reward.precision}),
    })  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """One configuration of the learner, and its predicted time per step."""

    dtype: Precision
    layout: Literal["plain", "packed"]
    threads: int
    train_threads: int
    step_s: float

    def __str__(self) -> str:
        training = f", {_threads(self.train_threads)} for training" if self.train_threads != self.threads else ""
        return f"{self.dtype} on {_threads(self.threads)}{training}"


def _learner(settings: Settings, rates: MachineRates, float32_fits: bool) -> tuple[object, tuple[str, ...]]:
    learner = settings.learner
    wanted = PRECISIONS if learner.dtype == "auto" else (learner.dtype,)
    plans = [_plan(settings, rates, dtype) for dtype in wanted if rates.of(dtype) and (dtype == "bfloat16" or float32_fits or len(wanted) == 1)]
    best = min(plans, key=lambda plan: plan.step_s)
    update: dict[str, object] = {"dtype": best.dtype, "expert_layout": best.layout}
    if not learner.ray_address:  # processes on other machines count their own cores
        update |= {"threads": best.threads, "train_threads": best.train_threads}
    others = [f"{plan.dtype} {plan.step_s:.1f} s" for plan in plans if plan is not best]
    told = f", {', '.join(others)}" if others else ""
    why = f"learner: {best}{_packed(best.layout)}: {best.step_s:.1f} s a step predicted{told}"
    return learner.model_copy(update=update), (why,)


def _plan(settings: Settings, rates: MachineRates, dtype: Precision) -> _Plan:
    learner = settings.learner.model_copy(update={"dtype": dtype})
    share = max(1, rates.cores // learner.workers)
    sampling_s: dict[tuple[str, int], float] = {}
    for rate in _allowed(rates, dtype, learner.threads, share):
        for layout in _layouts(learner.expert_layout, rate):
            laid_out = learner.model_copy(update={"expert_layout": layout})
            sampling_s[layout, rate.threads] = rollout_s(laid_out, rates, rate, learner.prompts_per_step, PROMPT_TOKENS)
    layout, threads = min(sampling_s, key=lambda how: _handicapped(sampling_s[how], how[1]))
    asked = learner.train_threads or (threads if learner.threads else 0)
    training_s = {
        rate.threads: train_s(learner, rates, rate, learner.prompts_per_step, PROMPT_TOKENS) for rate in _allowed(rates, dtype, asked, share)
    }
    train_threads = min(training_s, key=lambda count: _handicapped(training_s[count], count))
    named: Literal["plain", "packed"] = "packed" if layout == "packed" else "plain"
    plan = learner.model_copy(update={"expert_layout": named, "threads": learner.threads or threads, "train_threads": asked or train_threads})
    step = predicted_step(settings.model_copy(update={"learner": plan}), rates)
    return _Plan(dtype, named, plan.threads, plan.train_threads, step.total_s if step else 0.0)


def _actor(settings: Settings, rates: MachineRates, float32_fits: bool) -> tuple[object, tuple[str, ...]]:
    actor, at_once = settings.actor, settings.people.at_once
    wanted = PRECISIONS if actor.dtype == "auto" else (actor.dtype,)
    tokens: dict[tuple[str, int, str], float] = {}
    for dtype in wanted:
        if dtype == "float16" or (dtype == "float32" and not float32_fits and len(wanted) > 1):
            continue
        for rate in _allowed(rates, dtype, actor.cpu_threads, rates.cores):
            threads = actor.cpu_threads or rate.threads
            for layout in _layouts(actor.expert_layout, rate):
                tried = actor.model_copy(update={"dtype": dtype, "cpu_threads": threads, "expert_layout": layout})
                tokens[dtype, threads, layout] = answer_tokens_per_s(settings.model_copy(update={"actor": tried}), rates, at_once) or 1.0
    if not tokens:  # float16 is not measured
        return actor.model_copy(update={"cpu_threads": actor.cpu_threads or rates.at("bfloat16", rates.cores).threads, "expert_layout": "plain"}), ()
    own = settings.learner.dtype
    best = min(tokens, key=lambda how: _handicapped(1 / tokens[how], how[1]) / (1.0 if how[0] == own else MARGIN))
    chosen, threads, layout = best
    others = sorted({(name, max(rate for (one, *_), rate in tokens.items() if one == name)) for name, *_ in tokens if name != chosen})
    told = f"actor: {chosen} on {_threads(threads)}{_packed(layout)}: {tokens[best]:.0f} tokens/s predicted for {at_once} answers at once"
    told += "".join(f", {name} {rate:.0f}" for name, rate in others)
    return actor.model_copy(update={"dtype": chosen, "cpu_threads": threads, "expert_layout": layout}), (told,)


def _reward(settings: Settings, rates: MachineRates, apart: bool) -> tuple[object, tuple[str, ...]]:
    reward, shape = settings.reward, rates.shape
    if reward.device != "cpu" or reward.dtype != "auto" or apart:
        return reward.model_copy(update={"dtype": reward.precision}), ()
    answer_ms = {dtype: 1000 * shape.layers * rates.at(dtype, reward.threads).feature_answer_s for dtype in PRECISIONS if rates.of(dtype)}
    dtype = min(answer_ms, key=lambda name: answer_ms[name])
    told = ", ".join(f"{name} {time:.1f} ms" for name, time in answer_ms.items() if name != dtype)
    why = f"features: {dtype}: {answer_ms[dtype]:.1f} ms an answer predicted{', ' + told if told else ''}"
    return reward.model_copy(update={"dtype": dtype}), (why,)


def _allowed(rates: MachineRates, dtype: Precision, threads: int, most: int) -> Iterator[WorkRates]:
    """Candidates: the number of threads that is set, or all up to ``most``."""
    if threads:
        yield rates.at(dtype, threads)
        return
    found = rates.of(dtype)
    yield from [rate for rate in found if rate.threads <= most] or found[:1]


def _layouts(asked: str, rate: WorkRates) -> tuple[str, ...]:
    there = ("plain", "packed") if rate.packed_layer_pass_s is not None else ("plain",)
    return there if asked == "auto" else (asked,)


def _handicapped(seconds: float, threads: int) -> float:
    """The time used to compare numbers of threads: doubling them must save a tenth."""
    return seconds / MARGIN ** (threads.bit_length() - 1)


def _packed(layout: str) -> str:
    return " with packed experts" if layout == "packed" else ""


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"
