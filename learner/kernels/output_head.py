"""The output head: log-probability and entropy of sampled tokens, a few rows at a time, without the large tables that autograd would keep.

A vocabulary's worth of numbers for every token is the largest thing in a step. The loss sees a token's distribution only through its
log-probability, one number, so the gradient of that number for the hidden state is computed at once with the number itself, as long as the table is
there; what is kept for the backward pass is as small as the hidden states, on every device. What the gradient says of the target itself, ``1 - p``,
is kept in float32: bfloat16 rounds a p of 0.998 and more to 1.
Shapes: ``K`` output tokens, ``H`` hidden, ``V`` vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from learner.models.compute_settings import HEAD_ROWS


class TokenScores(torch.autograd.Function):
    """``(hidden_KH, weight_VH, bias_V, target_K, temperature)`` to (log-probability of each target, entropy of its distribution), [K] in float32,
    both of ``softmax((hidden W^T + bias) / temperature)`` and in nats. The entropy has no gradient, nor have weight and bias: they are frozen."""

    @staticmethod
    def forward(ctx: Any, hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_K: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        wanted = bool(ctx.needs_input_grad[0])
        rise_KH = torch.empty_like(hidden_KH) if wanted else None
        logprob_K, entropy_K = (torch.empty(len(hidden_KH), dtype=torch.float32, device=hidden_KH.device) for _ in range(2))
        for start in range(0, len(hidden_KH), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            logprob_K[rows], entropy_K[rows], rise = _scores(hidden_KH[rows], weight_VH, bias_V, target_K[rows], temperature, wanted)
            if rise_KH is not None and rise is not None:
                rise_KH[rows] = rise
        ctx.save_for_backward(rise_KH)
        ctx.mark_non_differentiable(entropy_K)
        return logprob_K, entropy_K

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (rise_KH,) = ctx.saved_tensors
        return (rise_KH * gradients[0][:, None]).to(rise_KH.dtype), None, None, None, None


def _scores(hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_K: Tensor, temperature: float,
            wanted: bool) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Log-probability and entropy, [K] each, and if ``wanted`` the gradient of the first for the hidden states, [K, H]."""
    logits_KV = linear(hidden_KH, weight_VH, bias_V).float().div_(temperature)
    logits_KV -= logits_KV.amax(-1, keepdim=True)
    target_K1 = target_K[:, None]
    chosen_K1 = logits_KV.gather(-1, target_K1)
    chance_K1 = chosen_K1.exp()
    chances_KV = logits_KV.exp().scatter_(-1, target_K1, 0.0)  # the others': beside a sure target they would be lost in the sum
    others_K1 = chances_KV.sum(-1, keepdim=True)
    sum_K1 = others_K1 + chance_K1
    mean_K = (torch.bmm(chances_KV[:, None], logits_KV[:, :, None])[:, 0, 0] + (chance_K1 * chosen_K1)[:, 0]) / sum_K1[:, 0]
    log_sum_K1 = sum_K1.log()
    logprob_K1 = torch.where(chosen_K1 > -1, -(others_K1 / chance_K1).log1p(), chosen_K1 - log_sum_K1)
    rise_KH = None
    if wanted:
        scale_K1 = sum_K1 * -temperature
        slope_KV = chances_KV.div_(scale_K1).scatter_(-1, target_K1, others_K1 / -scale_K1)  # 1 - p: of a rounded p nothing would be left of it
        rise_KH = slope_KV.to(hidden_KH.dtype) @ weight_VH
    return logprob_K1[:, 0], log_sum_K1[:, 0] - mean_K, rise_KH
