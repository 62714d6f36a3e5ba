"""One decoder layer with its adapter, for timing: the same products that the learner computes for each layer of a policy.

Shapes as in learner/kernels/expert_lora.py: ``T`` tokens, ``B`` answers being decoded, ``H`` hidden, ``E`` experts, ``N`` keys, ``D`` a head's size.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from infra.machine.base_shape import BaseShape
from learner.kernels.expert_lora import Cast, Factors, FrozenStack, experts_forward

RANK = 8
KEYS = 64
"""Context length of a decoded token."""


class ProbeLayer:
    """Attention and experts with random weights. The adapter is float32 and cast at every pass, as in training."""

    def __init__(self, shape: BaseShape, dtype: torch.dtype) -> None:
        s, self._shape, self._dtype = shape, shape, dtype
        queries, keys = s.heads * s.head_size, s.key_heads * s.head_size
        self._norm_H = torch.ones(s.hidden, dtype=dtype)
        self._turn_D = torch.full((s.head_size,), 0.7, dtype=dtype)
        self._projections = [random_weight(dtype, width, s.hidden) for width in (queries, keys, keys)]
        self._output = random_weight(dtype, s.hidden, queries)
        self._router = random_weight(dtype, s.experts, s.hidden)
        self._gate_up, self._down = (
            random_weight(dtype, s.experts, 2 * s.intermediate, s.hidden),
            random_weight(dtype, s.experts, s.hidden, s.intermediate),
        )
        self._stacks = {packs: (FrozenStack(self._gate_up, packs), FrozenStack(self._down, packs)) for packs in (False, True)}
        self._factors = [_factors(1, width, s.hidden) for width in (queries, keys, keys)]
        self._output_factors = _factors(1, s.hidden, queries)
        self._gate_up_factors, self._down_factors = _factors(s.experts, 2 * s.intermediate, s.hidden), _factors(s.experts, s.hidden, s.intermediate)
        self._kept_BGND = torch.randn(1, s.key_heads, KEYS, s.head_size, dtype=dtype)

    def forward(self, x_TH: Tensor) -> Tensor:
        """A pass over one long sequence, as for training and prompts."""
        query, key, value = (states.unflatten(-1, (-1, self._shape.head_size)).transpose(0, 1)[None] for states in self._read(x_TH))
        seen = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)[0].transpose(0, 1).flatten(1)
        return self._answer(x_TH, seen, packs=False)

    def decode(self, x_BH: Tensor, packs: bool) -> Tensor:
        """A decoding pass: the next token of each answer."""
        shape, rows = self._shape, len(x_BH)
        query, key, value = self._read(x_BH)
        kept = self._kept_BGND.expand(rows, -1, -1, -1)
        keys, values = (torch.cat([kept, new.view(rows, shape.key_heads, 1, -1)], dim=2).flatten(0, 1).float() for new in (key, value))
        scores = torch.bmm(query.view(rows * shape.key_heads, -1, shape.head_size).float(), keys.transpose(1, 2)) * shape.head_size**-0.5
        return self._answer(x_BH, torch.bmm(scores.softmax(dim=-1), values).view(rows, -1).to(self._dtype), packs)

    def dense(self, x_TH: Tensor) -> Tensor:
        """A layer of the dense model behind the reward features: one expert, no adapter."""
        h = self._normed(x_TH)
        read = [linear(h, weight) for weight in self._projections]
        turned = (self._turned(read[0]), self._turned(read[1]), read[2])
        query, key, value = (states.unflatten(-1, (-1, self._shape.head_size)).transpose(0, 1)[None] for states in turned)
        seen = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)[0].transpose(0, 1).flatten(1)
        x_TH = x_TH + linear(seen, self._output)
        gate, up = linear(self._normed(x_TH), self._gate_up[0]).chunk(2, dim=-1)
        return x_TH + linear(silu(gate) * up, self._down[0])

    def _read(self, x_TH: Tensor) -> list[Tensor]:
        """Queries, keys and values, with rotary position embeddings."""
        h = self._normed(x_TH)
        found = [self._adapted(h, weight, factors) for weight, factors in zip(self._projections, self._factors, strict=True)]
        return [self._turned(found[0]), self._turned(found[1]), found[2]]

    def _answer(self, x_TH: Tensor, seen_TQ: Tensor, packs: bool) -> Tensor:
        x_TH = x_TH + self._adapted(seen_TQ, self._output, self._output_factors)
        h = self._normed(x_TH)
        weights_TK, chosen_TK = linear(h, self._router).float().softmax(dim=-1).topk(self._shape.experts_per_token)
        weights_TK = (weights_TK / weights_TK.sum(-1, keepdim=True)).to(self._dtype)
        gate_up, down = self._gate_up_factors.cast(self._dtype), self._down_factors.cast(self._dtype)
        return x_TH + experts_forward(h, chosen_TK, weights_TK, *self._stacks[packs], silu, gate_up, down)

    def _adapted(self, x: Tensor, weight: Tensor, factors: Factors) -> Tensor:
        pair: Cast = factors.cast(self._dtype)
        return linear(x, weight) + linear(linear(x, pair[0][0]), pair[0][1])

    def _turned(self, states_TD: Tensor) -> Tensor:
        """Rotary position embedding, in the same operations as transformers (``apply_rotary_pos_emb``)."""
        heads_TGD = states_TD.unflatten(-1, (-1, self._shape.head_size))
        first, second = heads_TGD.chunk(2, dim=-1)
        return (heads_TGD * self._turn_D + torch.cat([-second, first], dim=-1) * self._turn_D).flatten(-2)

    def _normed(self, x_TH: Tensor) -> Tensor:
        """RMSNorm, in the same operations as transformers."""
        wide_TH = x_TH.float()
        return self._norm_H * (wide_TH * torch.rsqrt(wide_TH.pow(2).mean(-1, keepdim=True) + 1e-5)).to(self._dtype)


def random_weight(dtype: torch.dtype, *sizes: int) -> Tensor:
    """Weights as small as a trained model's, so that nothing overflows."""
    return torch.empty(sizes, dtype=dtype).uniform_(-0.05, 0.05)


def _factors(experts: int, outputs: int, inputs: int) -> Factors:
    a, b = (torch.empty(sizes).uniform_(-0.05, 0.05).requires_grad_() for sizes in ((experts * RANK, inputs), (outputs, RANK * experts)))
    return Factors(a, b, 2.0, experts)
