"""The objective for people's words: hindsight distillation. The policy with the comment in its prompt teaches the policy without it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, microbatches, pack
from learner.objectives import losses
from learner.ring.labelled_answers import LabelledAnswer, advised
from learner.settings import LearnerSettings


class HindsightObjective:
    """Mean divergence of the policy with and without the feedback in its prompt, on the tokens of an answer.

    The teacher is the current policy with the comment or the correction beside the question, without gradient. The student is the policy with the
    question alone (context distillation, Snell et al. 2022; with feedback as the context: self-distillation policy optimisation, Hübotter et al.
    2026). Both see the same answer. The whole distribution at each token is distilled, not the sampled token alone.
    """

    def __init__(self, policy: Policy, settings: LearnerSettings, labelled: Sequence[LabelledAnswer],
                 outputs: Sequence[tuple[tuple[int, ...], ...]]) -> None:  # fmt: skip
        """``outputs``: for each labelled answer, the answers whose tokens are used for teaching."""
        self._policy, self._settings = policy, settings
        self._students = [Branches(policy.prompt_ids(one.prompt), found) for one, found in zip(labelled, outputs, strict=True)]
        self._teachers = [Branches(policy.prompt_ids(advised(one)), found) for one, found in zip(labelled, outputs, strict=True)]
        self._passes = microbatches(self._teachers, settings.microbatch_tokens)
        self._count = sum(len(output) for found in outputs for output in found)
        self._kl, self._updates = 0.0, 0

    @property
    def tokens(self) -> int:
        """Tokens that one update computes, the teacher's included."""
        return sum(row.tokens for row in (*self._students, *self._teachers))

    def backward(self, passed: Callable[[int], None] = lambda _: None) -> None:
        """Add this objective's gradients to the adapter's."""
        policy, s = self._policy, self._settings
        for numbers in self._passes:
            with torch.no_grad(), policy.reference() if s.hindsight_teacher == "base" else nullcontext():
                teacher_KV = policy.distributions(pack([self._teachers[n] for n in numbers], policy.eos_id, policy.device), s.temperature)
            student_KV = policy.distributions(pack([self._students[n] for n in numbers], policy.eos_id, policy.device), s.temperature)
            kl = losses.distillation_kl(teacher_KV, student_KV).sum() / self._count
            (s.hindsight_weight * kl).backward()
            self._kl += float(kl.detach()) if self._updates == 0 else 0.0
            passed(sum(self._students[n].tokens + self._teachers[n].tokens for n in numbers))
        self._updates += 1

    def metrics(self) -> dict[str, float]:
        """Figures of the first update: divergence per token between the policy with and without the feedback."""
        return {"hindsight_answers": float(len(self._students)), "hindsight_kl_nats": self._kl}
