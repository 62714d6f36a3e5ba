"""Losses and penalties of a step, token by token: to add another loss, begin here. ``B`` rollouts, ``T`` output tokens (padded); logprobs in nats.

Advantages are given per token, [B, T], or per rollout, [B, 1].
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor


def clipped_surrogate(policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, advantages_BT: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """PPO's clipped surrogate of each token (Schulman et al. 2017, eq. 7), with DAPO's asymmetric clip (Yu et al. 2025). [B, T].

    To be maximised. ``old_BT`` are the *trainer's* log-probabilities before the step's first update, without gradient: the
    clip bounds how far the updates move. The gap to the engine that sampled the tokens is corrected apart from this, by the
    weights of ``learner/objectives/importance_weights.py``; were ``old_BT`` recomputed after every update, no ratio would ever leave 1.
    """
    ratio_BT = (policy_BT - old_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    return (ratio_BT * advantages_BT).minimum(clipped_BT * advantages_BT)


def gspo(policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, advantages_BT: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """The surrogate with one ratio a sequence, ``exp(mean over tokens of log ratio)``, clipped as a whole (GSPO, Zheng et al. 2025, eq. 5-7).

    Each token carries its sequence's value, so advantages are [B, 1]. Steadier than token ratios on a mixture of experts, where one flipped
    expert moves single tokens far; its ratios stay so near 1 that the paper clips at 3e-4 and 4e-4.
    """
    lengths_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    mean_log_ratio_B1 = (policy_BT - old_BT).masked_fill(~mask_BT, 0.0).sum(dim=1, keepdim=True) / lengths_B1
    ratio_B1 = mean_log_ratio_B1.exp()
    value_B1 = (ratio_B1 * advantages_BT).minimum(ratio_B1.clamp(1 - clip_low, 1 + clip_high) * advantages_BT)
    return value_B1.expand_as(policy_BT)


def cispo(policy_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, advantages_BT: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """``sg(clip(ratio)) * advantage * log policy`` (CISPO, MiniMax 2025, eq. 4): a clipped token keeps its gradient, with limited weight."""
    ratio_BT = (policy_BT - old_BT).detach().exp().clamp(1 - clip_low, 1 + clip_high)
    return ratio_BT * advantages_BT * policy_BT


STEER: Final = 0.2
SURROGATES: Final[dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]]] = {
    "ppo": clipped_surrogate,
    "gspo": gspo,
    "cispo": cispo,
}


def kto(policy_B: Tensor, reference_B: Tensor, good_B: Tensor, kl: float, beta: float, good_weight: float = 1.0, bad_weight: float = 1.0) -> Tensor:
    """Loss of unpaired thumbs (KTO, Ethayarajh et al. 2024, eq. 8). [B], to be minimised.

    ``policy_B`` and ``reference_B`` are whole answers' log-probabilities; ``good_B`` is True for a thumb up; ``kl`` is the policy's distance
    from the reference on other answers (never negative, without gradient), the reference point of gains and losses.
    """
    gain_B = beta * (policy_B - reference_B - kl)
    return torch.where(good_B, good_weight * (1 - gain_B.sigmoid()), bad_weight * (1 - (-gain_B).sigmoid()))


def distillation_kl(teacher_KV: Tensor, student_KV: Tensor) -> Tensor:
    """``KL(teacher || student)`` over the whole vocabulary at each token (Hinton et al. 2015; forward, so that the student covers what the teacher
    may say). [K]; log-probabilities [K, V] in nats. The teacher's come without gradient."""
    return (teacher_KV.exp() * (teacher_KV - student_KV)).sum(dim=-1)


def k3_kl(policy_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from tokens the policy sampled: ``r - 1 - log r``, r = reference / policy. [B, T].

    Never negative and unbiased in value (Schulman 2020, "Approximating KL divergence", k3; GRPO eq. 4).
    """
    log_ratio_BT = reference_BT - policy_BT
    return log_ratio_BT.exp() - 1 - log_ratio_BT


def steered(coefficient: float, kl_nats: float, target_nats: float, first: float) -> float:
    """The KL's next weight: up or down by at most ``STEER`` as the KL is above or below its target (Ziegler et al. 2019, section 2.2).

    It stays between a hundredth and a hundred times the ``first`` weight, so that a long time below the target does not remove the penalty.
    """
    error = min(1.0, max(-1.0, kl_nats / target_nats - 1))
    return min(100 * first, max(first / 100, coefficient * (1 + STEER * error)))


def masked_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over unmasked tokens. The mean over a step is the sum of this over its microbatches, divided once by the step's number of tokens: dividing
    each microbatch by its own number would give a token's weight by the microbatch it happens to be in."""
    return values_BT.masked_fill(~mask_BT, 0.0).sum()
