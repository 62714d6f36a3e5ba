"""One step of learning, as data: prompts in, a better adapter and the step's figures out."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from learner import advantages, corrections, losses
from learner.packing import Branches, Packed, microbatches, pack
from learner.policy import Policy
from learner.rollouts import Engine, Rollout
from learner.settings import LearnerSettings
from streams.events import Message

Prompt = tuple[Message, ...]


class Scorer(Protocol):
    """Says how good answers are. The reward model behind it, or a plain function in tests."""

    def __call__(self, pairs: Sequence[tuple[Prompt, str]]) -> Sequence[float]: ...


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    step: int
    """Steps taken so far, this one included."""
    rollouts: tuple[Rollout, ...]
    answers: tuple[str, ...]
    rewards: tuple[float, ...]
    base_gaps: tuple[float, ...]
    """Mean distance of each rollout's log-probabilities from the base's before the update, in nats; 0 where it was not measured."""
    metrics: dict[str, float]
    """Rewards as given, nats, ratios; seconds and tokens by phase."""


@dataclass
class _Totals:
    """Sums over the step's tokens."""

    kl: float = 0.0
    entropy: float = 0.0
    ratio: float = 0.0
    ratio_max: float = 0.0
    clipped: float = 0.0


class Trainer:
    """Holds the optimizer. Everything random comes from (seed, step), so a step is a function of adapter, optimizer and input."""

    def __init__(self, policy: Policy, engine: Engine, settings: LearnerSettings) -> None:
        self.policy, self.engine, self.settings = policy, engine, settings
        self.optimizer = torch.optim.AdamW(policy.parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.step_number = 0
        self.kl_coefficient = settings.kl_coefficient
        """Of the next step; it moves only when ``kl_target_nats`` is set."""

    def step(self, prompts: Sequence[Prompt], scorer: Scorer) -> StepResult:
        """Sample a group for each prompt, score, and update the adapter. Prompts that are too long count as an error of the caller."""
        clock: dict[str, float] = {}
        with _timed(clock, "rollout"):
            rollouts = self._sample(prompts)
        answers = self.policy.tokenizer.batch_decode([r.output_ids for r in rollouts], skip_special_tokens=True)
        with _timed(clock, "score"):
            rewards = self._rewards(prompts, rollouts, answers, scorer)
        with _timed(clock, "train"), _threads(self.settings.train_threads):
            chosen = self._chosen(rewards)
            metrics, trained_gaps = self._learn([rollouts[n] for n in chosen], rewards[chosen], len(chosen) // len(prompts))
        found = dict(zip(chosen, trained_gaps, strict=True))
        gaps = tuple(found.get(n, 0.0) for n in range(len(rollouts)))
        self.step_number += 1
        if self.kl_coefficient > 0 and self.settings.kl_target_nats > 0:
            self.kl_coefficient = losses.steered(self.kl_coefficient, metrics["kl_nats"], self.settings.kl_target_nats, self.settings.kl_coefficient)
        output_tokens = sum(len(r.output_ids) for r in rollouts)
        metrics |= {f"{phase}_s": seconds for phase, seconds in clock.items()} | {
            "reward_mean": float(rewards.mean()),
            "reward_std": float(rewards.std()),
            "output_tokens": float(output_tokens),
            "cut_ratio": sum(r.finish == "cut" for r in rollouts) / len(rollouts),
            "rollout_tokens_per_s": output_tokens / clock["rollout"],
            "train_tokens_per_s": metrics["train_tokens"] / clock["train"],
        }
        return StepResult(self.step_number, tuple(rollouts), tuple(answers), tuple(rewards.tolist()), gaps, metrics)

    def tokenize(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt as the engine sees it: chat template and the opening of the answer."""
        spoken = [{"role": message.role, "content": message.text} for message in prompt]
        return tuple(self.policy.tokenizer.apply_chat_template(spoken, add_generation_prompt=True, return_dict=False))

    def fits(self, prompt: Prompt) -> bool:
        """True when the prompt is within ``max_prompt_tokens``."""
        return len(self.tokenize(prompt)) <= self.settings.max_prompt_tokens

    def _sample(self, prompts: Sequence[Prompt]) -> list[Rollout]:
        s = self.settings
        self.engine.adopt(self.policy, self.step_number)
        seed = (s.seed << 32) + self.step_number
        return self.engine.sample([self.tokenize(p) for p in prompts], s.samples_per_prompt, s.max_output_tokens, s.temperature, seed)

    def _rewards(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], answers: Sequence[str], scorer: Scorer) -> Tensor:
        """The score after the guards that need no model. [P x G]."""
        s = self.settings
        asked = [prompts[n // s.samples_per_prompt] for n in range(len(rollouts))]
        scores = scorer(list(zip(asked, answers, strict=True)))
        return torch.tensor([
            (float(score) if answer.strip() else s.empty_reward) - (s.cut_penalty if rollout.finish == "cut" else 0.0)
            for score, answer, rollout in zip(scores, answers, rollouts, strict=True)
        ])  # fmt: skip

    def _chosen(self, rewards_B: Tensor) -> list[int]:
        """Which rollouts are trained on."""
        s = self.settings
        if not s.trained_per_prompt:
            return list(range(len(rewards_B)))
        within_PK = advantages.most_telling(rewards_B.view(-1, s.samples_per_prompt), s.trained_per_prompt)
        return (within_PK + torch.arange(len(within_PK))[:, None] * s.samples_per_prompt).flatten().tolist()

    def _learn(self, rollouts: Sequence[Rollout], rewards_B: Tensor, size: int) -> tuple[dict[str, float], tuple[float, ...]]:
        """Update on groups of ``size`` rollouts; figures, and each rollout's distance from the base."""
        s, device = self.settings, self.policy.device
        advantages_B = advantages.BY_NAME[s.advantage](rewards_B.view(-1, size)).flatten().to(device)
        groups = [rollouts[n : n + size] for n in range(0, len(rollouts), size)]
        rows = [Branches(group[0].prompt_ids, tuple(r.output_ids for r in group)) for group in groups]
        passes = []
        for numbers in microbatches(rows, s.microbatch_tokens):
            members = [n * size + k for n in numbers for k in range(size)]
            packed = pack([rows[n] for n in numbers], self.policy.eos_id, device)
            passes.append(_Pass(packed, members, advantages_B[members], _behaviour(packed, [rollouts[m] for m in members])))
            if paying := [k for k, n in enumerate(numbers) if self.kl_coefficient > 0 and n in self._groups_that_pay(len(rows))]:
                passes[-1].reference_BT, passes[-1].paying_BT = self._reference(packed, [rows[n] for n in numbers], paying, size)
        count = sum(int(p.packed.mask_BT.sum()) for p in passes)
        paying_tokens = sum(int(p.paying_BT.sum()) for p in passes)
        divisor = count if s.normaliser == "tokens" else len(rollouts) * s.max_output_tokens
        totals, norm = _Totals(), torch.zeros(())
        for update in range(s.updates_per_step):
            self.optimizer.zero_grad(set_to_none=True)
            for one in passes:
                self._accumulate(one, divisor, count / max(1, paying_tokens), totals if update == 0 else _Totals())
            norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters.values(), s.max_gradient_norm)
            if bool(norm.isfinite()):  # a step that is not a number would end the policy; it is left out, and the metric shows it
                self.optimizer.step()
        gaps = {member: gap for p in passes for member, gap in zip(p.members, p.base_gaps(), strict=True)}
        weights = torch.cat([p.weights_BT[p.packed.mask_BT] for p in passes])
        metrics = {
            "kl_nats": totals.kl / max(1, paying_tokens),
            "kl_coefficient": self.kl_coefficient,
            "entropy_nats": totals.entropy / count,
            "engine_ratio_mean": totals.ratio / count,
            "engine_ratio_max": totals.ratio_max,
            "effective_sample_ratio": corrections.effective_sample_ratio(weights, torch.ones_like(weights, dtype=torch.bool)),
            "gradient_norm": float(norm),
            "train_tokens": float(sum(p.packed.tokens for p in passes) * s.updates_per_step),
        }
        return metrics, tuple(gaps[n] for n in range(len(rollouts)))

    def _groups_that_pay(self, groups: int) -> set[int]:
        """The groups whose KL is measured in this step; over the steps each has its turn."""
        count = max(1, round(groups * self.settings.kl_groups_ratio))
        return {(self.step_number * count + n) % groups for n in range(count)}

    @torch.no_grad()
    def _reference(self, packed: Packed, rows: Sequence[Branches], paying: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """The base's log-probabilities on the paying rows, zero elsewhere, and the mask of their tokens; both [B, T] as in ``packed``."""
        members = [k * size + sample for k in paying for sample in range(size)]
        small = pack([rows[k] for k in paying], self.policy.eos_id, self.policy.device)
        with self.policy.reference():
            found = self.policy.stats(small, self.settings.temperature).logprobs_BT
        reference_BT = torch.zeros(packed.mask_BT.shape, device=found.device)
        reference_BT[members, : found.shape[1]] = found
        paying_BT = torch.zeros_like(packed.mask_BT)
        paying_BT[members] = packed.mask_BT[members]
        return reference_BT, paying_BT

    def _accumulate(self, one: "_Pass", divisor: float, scale: float, totals: _Totals) -> None:
        """Forward and backward of one microbatch; the first time round it also fixes the step's old log-probabilities.

        ``scale``: tokens in all over tokens that pay the KL.
        """
        s, mask_BT = self.settings, one.packed.mask_BT
        stats = self.policy.stats(one.packed, s.temperature)
        policy_BT = stats.logprobs_BT
        if one.old_BT is None:
            one.old_BT = policy_BT.detach()
            ratio_BT = corrections.engine_ratio(one.old_BT, one.behaviour_BT, mask_BT)
            weigh = corrections.token_weights if s.importance == "token" else corrections.sequence_weights
            one.weights_BT = weigh(one.old_BT, one.behaviour_BT, mask_BT, s.importance_cap)
            totals.ratio += float(ratio_BT.sum())
            totals.ratio_max = max(totals.ratio_max, float(ratio_BT.max()))
            totals.entropy += float(stats.entropy_BT.sum())
        gain_BT = one.weights_BT * losses.SURROGATES[s.surrogate](policy_BT, one.old_BT, mask_BT, one.advantages_B, s.clip_low, s.clip_high)
        loss = -losses.masked_sum(gain_BT, mask_BT)
        if one.reference_BT is not None:
            kl = losses.masked_sum(losses.k3_kl(policy_BT, one.reference_BT), one.paying_BT)
            totals.kl += float(kl.detach())
            loss = loss + self.kl_coefficient * kl * scale
        (loss / divisor).backward()


class _Pass:
    """One microbatch through a step: what is known of its tokens, and what the first update finds out."""

    def __init__(self, packed: Packed, members: Sequence[int], advantages_B: Tensor, behaviour_BT: Tensor) -> None:
        self.packed, self.members, self.advantages_B, self.behaviour_BT = packed, members, advantages_B, behaviour_BT
        self.old_BT: Tensor | None = None
        self.reference_BT: Tensor | None = None
        self.paying_BT = torch.zeros_like(packed.mask_BT)
        self.weights_BT = torch.zeros_like(behaviour_BT)

    def base_gaps(self) -> list[float]:
        """How far each rollout's tokens were from the base's mind, on average; 0 when the base was not asked."""
        if self.old_BT is None or self.reference_BT is None:
            return [0.0] * len(self.members)
        distances_BT = (self.old_BT - self.reference_BT).abs().masked_fill(~self.paying_BT, 0.0)
        return (distances_BT.sum(1) / self.paying_BT.sum(1).clamp(min=1)).tolist()


def _behaviour(packed: Packed, rollouts: Sequence[Rollout]) -> Tensor:
    return packed.spread(torch.tensor([logprob for r in rollouts for logprob in r.behaviour_logprobs], device=packed.mask_BT.device))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within, torch computes with so many threads; 0 leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _timed(clock: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    clock[phase] = time.perf_counter() - start
