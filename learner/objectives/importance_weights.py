"""Importance weights: they correct for engine and trainer giving the same token different probabilities.

``B`` rollouts, ``T`` output tokens (padded); log-probabilities in nats, of the distribution that was sampled.
"""

import torch
from torch import Tensor


def token_weights(trainer_BT: Tensor, behaviour_BT: Tensor, mask_BT: Tensor, cap: float) -> Tensor:
    """Truncated importance weights ``min(trainer / behaviour, cap)``, without gradient; 0 on padding. [B, T].

    TIS at the token (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"). ``behaviour_BT``
    come from the engine that *sampled* the tokens; recomputing them in the trainer would make every weight 1 and learn
    off-policy data as if it were on-policy.
    """
    return engine_ratio(trainer_BT, behaviour_BT, mask_BT).clamp(max=cap)


def engine_ratio(trainer_BT: Tensor, behaviour_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """``trainer / behaviour`` of each token, not truncated, without gradient; 0 on padding. [B, T]."""
    return (trainer_BT - behaviour_BT).detach().exp().masked_fill(~mask_BT, 0.0)


def sequence_weights(trainer_BT: Tensor, behaviour_BT: Tensor, mask_BT: Tensor, cap: float) -> Tensor:
    """Truncated importance weights of whole answers, ``min(product of token ratios, cap)``, on each of its tokens; 0 on padding. [B, T].

    Unbiased up to the truncation, where the token's weight is not; of higher variance, the more so the longer the answer.
    """
    log_ratio_B1 = (trainer_BT - behaviour_BT).detach().masked_fill(~mask_BT, 0.0).sum(dim=1, keepdim=True)
    return log_ratio_B1.exp().clamp(max=cap).expand_as(trainer_BT).masked_fill(~mask_BT, 0.0)


def in_range(ratio_BT: Tensor, mask_BT: Tensor, low: float, high: float) -> Tensor:
    """True on tokens whose ratio lies within [low, high]: the mask of masked importance sampling (Liu et al. 2025, IcePop)."""
    return mask_BT & (ratio_BT >= low) & (ratio_BT <= high)


def effective_sample_ratio(weights_BT: Tensor, mask_BT: Tensor) -> float:
    """Kish's effective sample size over the sample size, ``(sum w)^2 / (n sum w^2)``: 1 on-policy, towards 1/n when few tokens carry all."""
    weights_K = weights_BT[mask_BT].to(torch.float64)
    if weights_K.numel() == 0 or not bool(weights_K.any()):
        return 0.0
    return float(weights_K.sum() ** 2 / (weights_K.numel() * (weights_K**2).sum()))
