"""What a step maximises and what it pays, token by token. ``B`` rollouts, ``T`` output tokens (padded); logprobs in nats."""

from torch import Tensor


def clipped_surrogate(policy_BT: Tensor, old_BT: Tensor, advantages_B: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """PPO's clipped surrogate of each token (Schulman et al. 2017, eq. 7), with DAPO's asymmetric clip (Yu et al. 2025). [B, T].

    To be maximised. ``old_BT`` are the *trainer's* log-probabilities before the step's first update, without gradient: the
    clip bounds how far the updates move. The gap to the engine that sampled the tokens is corrected apart from this, by the
    weights of ``learner/corrections.py``; were ``old_BT`` recomputed after every update, no ratio would ever leave 1.
    """
    ratio_BT = (policy_BT - old_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    advantages_B1 = advantages_B[:, None]
    return (ratio_BT * advantages_B1).minimum(clipped_BT * advantages_B1)


def k3_kl(policy_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from tokens the policy sampled: ``r - 1 - log r``, r = reference / policy. [B, T].

    Never negative and unbiased in value (Schulman 2020, "Approximating KL divergence", k3; GRPO eq. 4).
    """
    log_ratio_BT = reference_BT - policy_BT
    return log_ratio_BT.exp() - 1 - log_ratio_BT


def masked_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over the tokens that are there. The mean over a step is the sum of this over its microbatches, divided once by the
    step's own number of tokens: dividing each microbatch by its own would weigh tokens by the company they are in."""
    return values_BT.masked_fill(~mask_BT, 0.0).sum()
