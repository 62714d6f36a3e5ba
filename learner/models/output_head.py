"""The output head: log-probability and entropy of sampled tokens, without the large tables that autograd would keep.

A vocabulary's worth of numbers for every token is the largest thing in a step. Written out, log-probability and entropy take nine walks over it
and keep two of it in float32; here it is five, and one is kept, in the precision of the activations. What the gradient says of the target
itself, ``1 - p``, is kept in float32: bfloat16 rounds a p of 0.998 and more to 1.
Shapes: ``K`` output tokens, ``H`` hidden, ``V`` vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


class TokenScores(torch.autograd.Function):
    """``(hidden_KH, weight_VH, bias_V, target_K, temperature)`` to (log-probability of each target, entropy of its distribution), [K] in float32,
    both of ``softmax((hidden W^T + bias) / temperature)`` and in nats. The entropy has no gradient, nor have weight and bias: they are frozen."""

    @staticmethod
    def forward(ctx: Any, hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_K: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
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
        ctx.save_for_backward(chances_KV.div_(sum_K1).to(hidden_KH.dtype), others_K1 / sum_K1, target_K1, weight_VH)
        ctx.temperature = temperature
        entropy_K = log_sum_K1[:, 0] - mean_K
        ctx.mark_non_differentiable(entropy_K)
        return logprob_K1[:, 0], entropy_K

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        chances_KV, doubt_K1, target_K1, weight_VH = ctx.saved_tensors
        scale_K1 = (gradients[0] / ctx.temperature)[:, None]
        rise_KV = chances_KV * -scale_K1.to(chances_KV.dtype)
        rise_KV.scatter_(-1, target_K1, (scale_K1 * doubt_K1).to(chances_KV.dtype))  # 1 - p from float32: of a rounded p nothing is left of it
        return rise_KV @ weight_VH, None, None, None, None
