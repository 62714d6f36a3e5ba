"""LoRA on experts in factored form: the arithmetic of an adapter on a mixture of experts.

PEFT adds ``B A`` to the fused expert weights and runs the experts on the sum: on every pass it writes a second copy of all
experts, and its backward computes the gradient of the whole weight. Here the adapter's two thin products are added to the
experts' outputs instead, which is the same function (to rounding) at a fraction of the work, for training and for decoding.
Shapes: ``T`` tokens, ``H`` hidden, ``I`` intermediate, ``E`` experts, ``K`` experts per token, ``R`` rank.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from reward.features.frozen_product import PACKED_FOR_ROWS, can_pack, packed, packed_product, product

Cast = list[tuple[Tensor, Tensor]]
"""An adapter's two factors for each expert, [R, in] and [out, R], the second scaled: output += (x A^T) B^T."""
Stacked = tuple[Tensor, Tensor]
"""The same of all experts: [E, R, in] and [E, out, R]."""


class Factors:
    """The trained factors of one frozen parameter, in PEFT's layout of a fused adapter: A is [E x R, in], B is [out, R x E]
    (``ParamWrapper.get_delta_weight``); of a plain linear layer with E = 1."""

    def __init__(self, a: Tensor, b: Tensor, scale: float, experts: int) -> None:
        self._a, self._b, self._scale, self._experts = a, b, scale, experts
        self._keeps, self._kept = False, dict[torch.dtype, tuple[Stacked, Cast]]()

    @property
    def rank(self) -> int:
        return self._a.shape[0] // self._experts

    def cast(self, dtype: torch.dtype) -> Cast:
        """The factors in the tokens' precision, expert by expert."""
        return self._both(dtype)[1]

    def stacked(self, dtype: torch.dtype) -> Stacked:
        """The same of all experts at once."""
        return self._both(dtype)[0]

    def keep(self, keeps: bool) -> None:
        """Reuse the cast factors until this is switched off. The weights must not change meanwhile."""
        self._keeps = keeps
        self._kept.clear()

    def _both(self, dtype: torch.dtype) -> tuple[Stacked, Cast]:
        if (kept := self._kept.get(dtype)) is not None:
            return kept
        a_ERI, b_EOR = self._made(dtype)
        found = (a_ERI, b_EOR), list(zip(a_ERI.unbind(), b_EOR.unbind(), strict=True))
        if self._keeps:
            self._kept[dtype] = found
        return found

    def _made(self, dtype: torch.dtype) -> Stacked:
        a_ERI = self._a.to(dtype).reshape(self._experts, -1, self._a.shape[-1])
        b_EOR = (self._scale * self._b).to(dtype).reshape(self._b.shape[0], -1, self._experts).permute(2, 0, 1).contiguous()
        return a_ERI, b_EOR


class FrozenStack:
    """The frozen weights of all experts, [E, O, I]. With ``packs``, what is multiplied without gradients on a CPU is a copy in oneDNN's own
    layout, made once: oneDNN would otherwise rearrange all of them at every token, half of the time of decoding."""

    def __init__(self, weight_EOI: Tensor, packs: bool) -> None:
        self.weight_EOI = weight_EOI.detach()
        self._packed: list[Tensor] | None = None
        self._packs = packs and weight_EOI.device.type == "cpu" and can_pack(weight_EOI.dtype)

    def times(self, expert: int, x_TI: Tensor, lora_TO: Tensor | None = None) -> Tensor:
        """``x W_e^T + lora``: [T, O], rounded once."""
        if not self._packs or torch.is_grad_enabled() or x_TI.shape[0] > PACKED_FOR_ROWS or x_TI.dtype != self.weight_EOI.dtype:
            return product(x_TI, self.weight_EOI[expert], lora_TO)
        if self._packed is None:
            self._packed = [packed(weight_OI) for weight_OI in self.weight_EOI]
        return packed_product(x_TI, self._packed[expert], lora_TO)


def thin(x_TI: Tensor, a_RI: Tensor, b_OR: Tensor) -> Tensor:
    """``(x A^T) B^T``: what an adapter adds, [T, O]."""
    return linear(linear(x_TI, a_RI), b_OR)


def experts_forward(x_TH: Tensor, chosen_TK: Tensor, weights_TK: Tensor, gate_up_stack: FrozenStack, down_stack: FrozenStack,
                    act: Callable[[Tensor], Tensor], gate_up: Cast | None, down: Cast | None, first: int = 0) -> Tensor:  # fmt: skip
    """Weighted sum over each token's chosen experts of ``down(act(gate(x)) * up(x))``, adapters included: [T, H].

    The stacks may hold a part of the experts, from number ``first`` on (the adapter's factors are of all); the sum is then over these alone.
    """
    flat = chosen_TK.reshape(-1)
    order = flat.argsort(stable=True)
    tokens = order // chosen_TK.shape[1]
    weights = weights_TK.reshape(-1)[order]
    counts = torch.bincount(flat, minlength=first + len(gate_up_stack.weight_EOI)).tolist()
    begin = start = sum(counts[:first])
    outputs = []
    for own, count in enumerate(counts[first : first + len(gate_up_stack.weight_EOI)]):
        if count == 0:
            continue
        mine = slice(start, start + count)
        start += count
        h = x_TH[tokens[mine]]
        y = gate_up_stack.times(own, h, None if gate_up is None else thin(h, *gate_up[first + own]))
        gate, up = y.chunk(2, dim=-1)
        z = act(gate) * up
        out = down_stack.times(own, z, None if down is None else thin(z, *down[first + own]))
        outputs.append(out * weights[mine, None].to(out.dtype))
    found = torch.cat(outputs or [x_TH[:0]])  # a sum over no pairs is still a function of x
    return torch.zeros_like(x_TH).index_add(0, tokens[begin:start], found)
