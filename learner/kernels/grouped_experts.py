"""Experts on a GPU: all of a layer in a few grouped matrix products, with their adapter, and without asking the device how many tokens each got.

The adapter's second factor lies behind the frozen weight in one buffer, ``[W | B]``, and the tokens' low-rank states behind the tokens,
``[x | x A^T]``: one product gives ``x W^T + (x A^T) B^T`` in one float32 sum, rounded once, as learner/kernels/expert_lora.py has it on a CPU. The
backward pass never computes a gradient of the frozen weight. torch has grouped products on a CPU too, where this is checked; not run on a GPU.
Shapes: ``T`` tokens, ``K`` experts per token, ``S`` pairs of both, sorted by expert, ``E`` experts, ``I`` inputs, ``O`` outputs, ``R`` rank.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

ALIGNED = 8
"""A grouped product wants rows of a multiple of 16 bytes: the rank is filled up with zeros."""


def grouped_product(first: Tensor, second: Tensor, offsets_E: Tensor) -> Tensor:
    """``first[group] @ second[e]`` for the rows of each group, [S, N] of [S, M] and [E, M, N]; or, where both are matrices, the products over each
    group's part of their common dimension, [E, M, N] of [M, S] and [S, N]. Rows after the last group mean nothing."""
    return torch._grouped_mm(first, second, offs=offsets_E)


class GroupedStack:
    """The frozen weights of all experts, with room for an adapter: [E, O, I + R]."""

    def __init__(self, weight_EOI: Tensor, rank: int = 0) -> None:
        experts, outputs, inputs = weight_EOI.shape
        self.rank, self._inputs = -(-rank // ALIGNED) * ALIGNED, inputs
        self._whole = weight_EOI.new_zeros(experts, outputs, inputs + self.rank)
        self._whole[..., :inputs] = weight_EOI.detach()

    @property
    def weight_EOI(self) -> Tensor:
        """A view: whoever holds it instead of the original spares a copy."""
        return self._whole[..., : self._inputs]

    def times(self, x_SI: Tensor, offsets_E: Tensor, adapter: tuple[Tensor, Tensor] | None) -> Tensor:
        """``x W_e^T``, plus ``(x A_e^T) B_e^T`` with an adapter of [E, R, I] and [E, O, R]: [S, O]."""
        if adapter is None:
            return _FrozenProduct.apply(x_SI, self.weight_EOI, offsets_E)
        a_ERI, b_EOR = adapter
        short = self.rank - a_ERI.shape[1]
        return _AdaptedProduct.apply(x_SI, pad(a_ERI, (0, 0, 0, short)), pad(b_EOR, (0, short)), self._whole, offsets_E)


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
        ctx.save_for_backward(weight_EOI, offsets_E)
        return grouped_product(x_SI, weight_EOI.transpose(-2, -1), offsets_E)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight_EOI, offsets_E = ctx.saved_tensors
        return grouped_product(gradients[0].contiguous(), weight_EOI, offsets_E), None, None


class _AdaptedProduct(torch.autograd.Function):
    """The factor B is written behind the frozen weight by the forward pass, and must not change before the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_SI: Tensor, a_ERI: Tensor, b_EOR: Tensor, whole: Tensor, offsets_E: Tensor) -> Tensor:
        inputs = x_SI.shape[1]
        whole[..., inputs:].copy_(b_EOR)
        states_SR = grouped_product(x_SI, a_ERI.transpose(-2, -1), offsets_E)
        ctx.save_for_backward(x_SI, a_ERI, states_SR, offsets_E)
        ctx.whole = whole  # not a saved tensor: the next layer's call of the same stack would count as a change
        return grouped_product(torch.cat([x_SI, states_SR], dim=1), whole.transpose(-2, -1), offsets_E)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x_SI, a_ERI, states_SR, offsets_E = ctx.saved_tensors
        rise_SO, inputs = gradients[0].contiguous(), x_SI.shape[1]
        rise = grouped_product(rise_SO, ctx.whole, offsets_E)
        of_states_SR = rise[:, inputs:].contiguous()
        of_x_SI = rise[:, :inputs] + grouped_product(of_states_SR, a_ERI, offsets_E)
        of_a_ERI = grouped_product(of_states_SR.t(), x_SI, offsets_E)
        of_b_EOR = grouped_product(rise_SO.t(), states_SR, offsets_E)
        return of_x_SI, of_a_ERI, of_b_EOR, None, None


def grouped_experts_forward(x_TH: Tensor, chosen_TK: Tensor, weights_TK: Tensor, gate_up_stack: GroupedStack, down_stack: GroupedStack,
                            act: Callable[[Tensor], Tensor], gate_up: tuple[Tensor, Tensor] | None, down: tuple[Tensor, Tensor] | None,
                            first: int = 0, in_all: int | None = None) -> Tensor:  # fmt: skip
    """``experts_forward`` of learner/kernels/expert_lora.py in grouped products: [T, H].

    The stacks may hold a part of the ``in_all`` experts, from number ``first`` on; the sum is then over these alone, and the adapter's factors are
    of these.
    """
    experts, (tokens, per_token) = len(gate_up_stack.weight_EOI), chosen_TK.shape
    own_S = chosen_TK.reshape(-1) - first
    has_others = in_all is not None and in_all != experts
    if has_others:
        own_S = torch.where((own_S >= 0) & (own_S < experts), own_S, experts)  # they come last, after all groups
    sorted_S, order_S = own_S.sort(stable=True)
    offsets_E = torch.searchsorted(sorted_S, torch.arange(experts, device=sorted_S.device), right=True).to(torch.int32)
    kept_S1 = (sorted_S < experts)[:, None] if has_others else None
    h_SH = _cleaned(x_TH[order_S // per_token], kept_S1)
    gate, up = _cleaned(gate_up_stack.times(h_SH, offsets_E, gate_up), kept_S1).chunk(2, dim=-1)
    out_SH = _cleaned(down_stack.times((act(gate) * up).contiguous(), offsets_E, down), kept_S1)
    out_SH = out_SH * weights_TK.reshape(-1)[order_S][:, None].to(out_SH.dtype)
    place_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    return out_SH[place_S].view(tokens, per_token, -1).sum(dim=1)


def _cleaned(rows: Tensor, kept_S1: Tensor | None) -> Tensor:
    """Zero where no group is, forward and backward: a grouped product leaves there what was in memory."""
    return rows if kept_S1 is None else torch.where(kept_S1, rows, torch.zeros((), dtype=rows.dtype, device=rows.device))
