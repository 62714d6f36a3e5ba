"""Advantages: a reward relative to the other rewards of its group. ``P`` prompts (groups), ``G`` rollouts per group."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

EPSILON: Final = 1e-6


def _centred(rewards_PG: Tensor) -> Tensor:
    """``r - mean`` within the group, in float64. There the mean of equal float32 numbers is that number. In float32 it is not always, and
    the residue, divided by a spread of nearly nothing, would push a whole group one way."""
    rewards_PG = rewards_PG.double()
    return rewards_PG - rewards_PG.mean(dim=1, keepdim=True)


def grpo(rewards_PG: Tensor) -> Tensor:
    """``(r - mean) / (std + eps)`` within the group (GRPO, Shao et al. 2024, section 4.1.2). [P, G].

    The standard deviation is the sample's (n - 1). A group of equal rewards teaches nothing: its advantages are 0.
    """
    centred_PG = _centred(rewards_PG)
    spread_P1 = (centred_PG.square().sum(dim=1, keepdim=True) / (rewards_PG.shape[1] - 1)).sqrt()
    return (centred_PG / (spread_P1 + EPSILON)).to(rewards_PG.dtype)


def dr_grpo(rewards_PG: Tensor) -> Tensor:
    """``r - mean`` within the group (Dr. GRPO, Liu et al. 2025): without the division, which favours groups of small spread."""
    return _centred(rewards_PG).to(rewards_PG.dtype)


def rloo(rewards_PG: Tensor) -> Tensor:
    """``r - mean of the others`` (leave-one-out, Kool et al. 2019; Ahmadian et al. 2024): an unbiased baseline."""
    size = rewards_PG.shape[1]
    return (_centred(rewards_PG) * (size / (size - 1))).to(rewards_PG.dtype)  # r - (sum - r) / (n - 1)


def reinforce_pp(rewards_PG: Tensor) -> Tensor:
    """``r - mean`` within the group, divided by the spread of the whole step (REINFORCE++ with baseline, Hu 2025): no group is blown up."""
    centred_PG = _centred(rewards_PG)
    return (centred_PG / (centred_PG.std() + EPSILON)).to(rewards_PG.dtype)


def gae(rewards_B: Tensor, values_BT: Tensor, mask_BT: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns they imply, both [B, T], 0 on padding (Schulman et al. 2016, eq. 16, with gamma 1).

    The reward comes with an answer's last token. ``delta_t = r_t + V_t+1 - V_t``; ``A_t = delta_t + decay * A_t+1``; the return, which the value
    function is fitted to, is ``A_t + V_t``. Answers end, so nothing is worth anything after the last token, whatever padding holds.
    """
    lengths_B = mask_BT.sum(dim=1)
    values_BT = values_BT.masked_fill(~mask_BT, 0.0)
    advantages_BT = torch.zeros_like(values_BT)
    following_B, next_value_B = torch.zeros_like(rewards_B), torch.zeros_like(rewards_B)
    for t in reversed(range(values_BT.shape[1])):
        reward_B = torch.where(lengths_B == t + 1, rewards_B, 0.0)
        delta_B = reward_B + next_value_B - values_BT[:, t]
        following_B = torch.where(mask_BT[:, t], delta_B + decay * following_B, 0.0)
        advantages_BT[:, t], next_value_B = following_B, values_BT[:, t]
    return advantages_BT, (advantages_BT + values_BT).masked_fill(~mask_BT, 0.0)


def most_telling(rewards_PG: Tensor, kept: int) -> Tensor:
    """Which ``kept`` rollouts of each group have rewards of the greatest variance: the best and the worst, half each. Indices, [P, kept], rising.

    Down-sampling rollouts (PODS, Xu et al. 2025, theorem 1: the subset of greatest variance is made of both ends). Of an odd number the
    extra one is a best. Equal rewards are taken in the order of sampling.
    """
    order_PG = rewards_PG.argsort(dim=1, descending=True, stable=True)
    worst = kept // 2
    return torch.cat([order_PG[:, : kept - worst], order_PG[:, order_PG.shape[1] - worst :]], dim=1).sort(dim=1).values


BY_NAME: Final[dict[str, Callable[[Tensor], Tensor]]] = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo, "reinforce_pp": reinforce_pp}
