"""The objective for thumbs on live answers (KTO): good answers become likelier and bad ones less likely, relative to the base."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, microbatches, pack
from learner.objectives import losses
from learner.ring.labelled_answers import LabelledAnswer
from learner.settings import LearnerSettings


class ThumbObjective:
    """The mean KTO loss over labelled answers with a verdict that is good or bad.

    Good and bad ones count alike however many there are of each, as the paper advises. An answer that the verdict of a later one reaches has that
    verdict's discounted weight. The reference point is the policy's distance from the
    base on answers to *other* questions of the same step (section 4.1), never negative, measured before the first update.
    """

    def __init__(self, policy: Policy, settings: LearnerSettings, labelled: Sequence[LabelledAnswer]) -> None:
        self._policy, self._settings = policy, settings
        self._rows = [
            Branches(policy.prompt_ids(one.prompt), (policy.reply_ids(one.prompt, one.answer, one.tool_calls, one.ended, settings.judged_tokens),))
            for one in labelled
        ]
        self._passes = microbatches(self._rows, settings.microbatch_tokens)
        self._good_B = torch.tensor([bool(one.good) for one in labelled], device=policy.device)
        self._weights_B = torch.tensor([one.weight for one in labelled], device=policy.device)
        good, both = float(self._weights_B[self._good_B].sum()), float(self._weights_B.sum())
        alike = 0 < good < both
        self._good_weight = both / (2 * good) if alike else 1.0
        self._bad_weight = both / (2 * (both - good)) if alike else 1.0
        with torch.no_grad(), policy.reference():
            self._reference = [self._logprobs(self._rows, numbers) for numbers in self._passes]
        self._kl = self._distance()
        self._loss, self._margin = 0.0, 0.0
        self._updates = 0

    @property
    def tokens(self) -> int:
        """Tokens that one update computes."""
        return sum(row.tokens for row in self._rows)

    def backward(self, passed: Callable[[int], None] = lambda _: None) -> None:
        """Add this objective's gradients to the adapter's."""
        for numbers, reference_B in zip(self._passes, self._reference, strict=True):
            s, good_B = self._settings, self._good_B[numbers]
            policy_B = self._logprobs(self._rows, numbers)
            loss_B = losses.kto(policy_B, reference_B, good_B, self._kl, s.kto_beta, self._good_weight, self._bad_weight) * self._weights_B[numbers]
            (s.thumb_weight * loss_B.sum() / len(self._rows)).backward()
            passed(sum(self._rows[n].tokens for n in numbers))
            if self._updates == 0:
                self._loss += float(loss_B.detach().sum()) / len(self._rows)
                gain_B = (policy_B - reference_B).detach()
                self._margin += float(torch.where(good_B, gain_B, -gain_B).sum()) / len(self._rows)
        self._updates += 1

    def metrics(self) -> dict[str, float]:
        """Of the first update. ``thumb_margin_nats``: how much likelier than under the base good answers are, and bad ones less, on average."""
        return {"thumb_answers": float(len(self._rows)), "thumb_loss": self._loss, "thumb_margin_nats": self._margin, "thumb_kl_nats": self._kl}

    def _logprobs(self, rows: Sequence[Branches], numbers: Sequence[int]) -> Tensor:
        """Log-probability of each whole answer. [B]."""
        packed = pack([rows[n] for n in numbers], self._policy.eos_id, self._policy.device)
        return self._policy.stats(packed, self._settings.temperature).logprobs_BT.sum(dim=1)

    @torch.no_grad()
    def _distance(self) -> float:
        """The reference point: every question with the next one's answer. 0 for a single answer, which has no other."""
        if len(self._rows) < 2:
            return 0.0
        shifted = [Branches(row.prompt_ids, other.outputs) for row, other in zip(self._rows, self._rows[1:] + self._rows[:1], strict=True)]
        gaps = []
        for numbers in microbatches(shifted, self._settings.microbatch_tokens):
            policy_B = self._logprobs(shifted, numbers)
            with self._policy.reference():
                gaps.append(policy_B - self._logprobs(shifted, numbers))
        return max(0.0, float(torch.cat(gaps).mean()))
