"""The objective on rollouts: the surrogate loss of their advantages, corrected for the engine, minus the KL to the base.

``P`` prompts (groups) of ``G`` rollouts each; ``B`` rollouts of one microbatch, ``T`` output tokens (padded); log-probabilities in nats.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, Packed, microbatches, pack
from learner.models.value_head import ValueHead
from learner.objectives import advantages, losses
from learner.objectives import importance_weights as corrections
from learner.rollouts.rollout_engines import Rollout
from learner.settings import LearnerSettings


@dataclass
class _Totals:
    """Sums over the step's tokens in its first update."""

    kl: float = 0.0
    entropy: float = 0.0
    ratio: float = 0.0
    ratio_max: float = 0.0
    loss: float = 0.0
    left_out: int = 0


class _Pass:
    """One microbatch of a step: its tokens, and the values that the first update computes once."""

    def __init__(self, packed: Packed, members: Sequence[int], rewards_B: Tensor, advantages_BT: Tensor, behaviour_BT: Tensor) -> None:
        self.packed, self.members, self.rewards_B, self.advantages_BT, self.behaviour_BT = packed, members, rewards_B, advantages_BT, behaviour_BT
        self.old_BT: Tensor | None = None
        self.reference_BT: Tensor | None = None
        self.chosen_LNK: Tensor | None = None
        """The experts that the engine chose, where they are replayed."""
        self.paying_BT = torch.zeros_like(packed.mask_BT)
        self.weights_BT = torch.zeros_like(behaviour_BT)

    def base_gaps(self) -> list[float]:
        """Mean distance of each rollout's log-probabilities from the base's; 0 when the base was not run."""
        if self.old_BT is None or self.reference_BT is None:
            return [0.0] * len(self.members)
        distances_BT = (self.old_BT - self.reference_BT).abs().masked_fill(~self.paying_BT, 0.0)
        return (distances_BT.sum(1) / self.paying_BT.sum(1).clamp(min=1)).tolist()


class RolloutObjective:
    """The surrogate minus the KL to the base, over one step's rollouts. Each row of the mesh computes its share of the passes."""

    def __init__(self, policy: Policy, settings: LearnerSettings, step_number: int, kl_coefficient: float,
                 rollouts: Sequence[Rollout], rewards_PG: Tensor, value_head: ValueHead | None = None) -> None:  # fmt: skip
        """``value_head``: computes advantages relative to its predictions at each token (GAE) instead of the group."""
        self._policy, self._settings, self._kl_coefficient, self._value_head = policy, settings, kl_coefficient, value_head
        size = rewards_PG.shape[1]
        rewards_B = rewards_PG.flatten().to(policy.device)
        advantages_B1 = torch.zeros_like(rewards_B)[:, None]
        if value_head is None:
            advantages_B1 = advantages.BY_NAME[settings.advantage](rewards_PG).flatten().to(policy.device)[:, None]
        else:
            value_head.begin(float(rewards_B.mean()))
        groups = [rollouts[n : n + size] for n in range(0, len(rollouts), size)]
        rows = [Branches(group[0].prompt_ids, tuple(r.output_ids for r in group)) for group in groups]
        paying = groups_that_pay(len(rows), settings.kl_groups_ratio, step_number) if kl_coefficient > 0 else set()
        self._passes: list[_Pass] = []
        for numbers in policy.mesh.share(microbatches(rows, settings.microbatch_tokens)):
            members = [n * size + k for n in numbers for k in range(size)]
            packed = pack([rows[n] for n in numbers], policy.eos_id, policy.device)
            one = _Pass(packed, members, rewards_B[members], advantages_B1[members], _behaviour(packed, [rollouts[m] for m in members]))
            if policy.routing is not None:
                one.chosen_LNK = policy.routing.laid_out(packed, [rows[n] for n in numbers], [rollouts[m].routing for m in members])
            if here := [k for k, n in enumerate(numbers) if n in paying]:
                one.reference_BT, one.paying_BT = self._reference(packed, [rows[n] for n in numbers], here, size)
            self._passes.append(one)
        self._count = sum(len(r.output_ids) for r in rollouts)
        self._paying_tokens = sum(len(r.output_ids) for n in paying for r in groups[n])
        self._divisor = self._count if settings.normaliser == "tokens" else len(rollouts) * settings.max_output_tokens
        self._first = _Totals()
        self._value_positions: list[tuple[Tensor, Tensor]] = []
        """Hidden states and returns that the value head is still to be fitted to."""
        self._value_loss = 0.0

    def backward(self, passed: Callable[[int], None] = lambda _: None) -> None:
        """Add this objective's gradients to the adapter's. The first call also stores the step's old log-probabilities."""
        for one in self._passes:
            with self._policy.routed(one.chosen_LNK):  # until the gradients are there: activations may be computed again for them
                self._accumulate(one)
            passed(one.packed.tokens)
        if self._value_head is not None and self._value_positions:  # only now: all advantages of a step come from one value function
            hidden_KH, returns_K = (torch.cat(parts) for parts in zip(*self._value_positions, strict=True))
            self._value_loss = self._value_head.fit(hidden_KH, returns_K, self._settings.value_updates)
            self._value_positions = []

    def metrics(self) -> dict[str, float]:
        """Nats and ratios, of the first update."""
        mesh, first = self._policy.mesh, self._first
        kl, entropy, ratio, ratio_max, loss, left_out = zip(*mesh.gathered([astuple(first)]), strict=True)
        weights = torch.tensor(mesh.gathered([weight for p in self._passes for weight in p.weights_BT[p.packed.mask_BT].tolist()]))
        return {
            "loss": sum(loss) / self._divisor,
            "kl_nats": sum(kl) / max(1, self._paying_tokens),
            "kl_coefficient": self._kl_coefficient,
            "entropy_nats": sum(entropy) / self._count,
            "engine_ratio_mean": sum(ratio) / self._count,
            "engine_ratio_max": max(ratio_max),
            "left_out_ratio": sum(left_out) / self._count,
            "effective_sample_ratio": corrections.effective_sample_ratio(weights, torch.ones_like(weights, dtype=torch.bool)),
            **({"value_loss": self._value_loss} if self._value_head is not None else {}),
        }

    def base_gaps(self) -> list[float]:
        """Mean distance of each rollout's log-probabilities from the base's before the update, in nats; 0 where it was not measured."""
        gaps = dict(self._policy.mesh.gathered([pair for p in self._passes for pair in zip(p.members, p.base_gaps(), strict=True)]))
        return [gaps[n] for n in range(len(gaps))]

    @property
    def tokens(self) -> int:
        """Tokens that one update computes in this process, padding included."""
        return sum(p.packed.tokens for p in self._passes)

    @torch.no_grad()
    def _reference(self, packed: Packed, rows: Sequence[Branches], paying: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """The base's log-probabilities on the paying rows, zero elsewhere, and the mask of their tokens; both [B, T] as in ``packed``."""
        members = [k * size + sample for k in paying for sample in range(size)]
        small = pack([rows[k] for k in paying], self._policy.eos_id, self._policy.device)
        with self._policy.reference():
            found = self._policy.stats(small, self._settings.temperature).logprobs_BT
        reference_BT = torch.zeros(packed.mask_BT.shape, device=found.device)
        reference_BT[members, : found.shape[1]] = found
        paying_BT = torch.zeros_like(packed.mask_BT)
        paying_BT[members] = packed.mask_BT[members]
        return reference_BT, paying_BT

    def _accumulate(self, one: _Pass) -> None:
        """Forward and backward of one microbatch."""
        s, mask_BT, first = self._settings, one.packed.mask_BT, one.old_BT is None
        stats = self._policy.stats(one.packed, s.temperature)
        policy_BT = stats.logprobs_BT
        if one.old_BT is None:
            one.old_BT = policy_BT.detach()
            ratio_BT = corrections.engine_ratio(one.old_BT, one.behaviour_BT, mask_BT)
            weigh = corrections.token_weights if s.importance == "token" else corrections.sequence_weights
            one.weights_BT = weigh(one.old_BT, one.behaviour_BT, mask_BT, s.importance_cap)
            if s.importance_floor or s.importance_ceiling:
                whole_BT = ratio_BT if s.importance == "token" else weigh(one.old_BT, one.behaviour_BT, mask_BT, math.inf)
                kept_BT = corrections.in_range(whole_BT, mask_BT, s.importance_floor, s.importance_ceiling or math.inf)
                one.weights_BT = one.weights_BT.masked_fill(~kept_BT, 0.0)
                self._first.left_out += int((mask_BT & ~kept_BT).sum())
            self._first.ratio += float(ratio_BT.sum())
            self._first.ratio_max = max(self._first.ratio_max, float(ratio_BT.max()))
            self._first.entropy += float(stats.entropy_BT.sum())
            if self._value_head is not None:
                with torch.no_grad():
                    values_BT = one.packed.spread(self._value_head.values(stats.hidden_KH))
                one.advantages_BT, returns_BT = advantages.gae(one.rewards_B, values_BT, mask_BT, s.gae_decay)
                self._value_positions.append((stats.hidden_KH, returns_BT[mask_BT]))
        gain_BT = one.weights_BT * losses.SURROGATES[s.surrogate](policy_BT, one.old_BT, mask_BT, one.advantages_BT, s.clip_low, s.clip_high)
        loss = -s.rollout_weight * losses.masked_sum(gain_BT, mask_BT)
        if one.reference_BT is not None:
            kl = losses.masked_sum(losses.k3_kl(policy_BT, one.reference_BT), one.paying_BT)
            self._first.kl += float(kl.detach()) if first else 0.0
            loss = loss + self._kl_coefficient * kl * (self._count / max(1, self._paying_tokens))
        self._first.loss += float(loss.detach()) if first else 0.0
        (loss / self._divisor).backward()


def groups_that_pay(groups: int, ratio: float, step_number: int) -> set[int]:
    """The groups whose KL is measured in this step. Over the steps every group has its turn."""
    count = max(1, round(groups * ratio))
    return {(step_number * count + n) % groups for n in range(count)}


def _behaviour(packed: Packed, rollouts: Sequence[Rollout]) -> Tensor:
    return packed.spread(torch.tensor([logprob for r in rollouts for logprob in r.behaviour_logprobs], device=packed.mask_BT.device))
