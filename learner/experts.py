"""Experts with their adapter in factored form.

PEFT adds ``B A`` to the fused expert weights and runs the experts on the sum: on every pass it writes a second copy of all
experts, and its backward computes the gradient of the whole weight. Here the adapter's two thin products are added to the
experts' outputs instead, which is the same function (to rounding) at a fraction of the work, for training and for decoding.
Shapes: ``T`` tokens, ``H`` hidden, ``I`` intermediate, ``E`` experts, ``K`` experts per token, ``R`` rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

DECODING_ROWS = 64
"""Batches up to this size are multiplied in the packed layout; larger ones gain little from it."""


@dataclass(frozen=True)
class Factors:
    """The adapter of one fused parameter: output += scale * (x A_e^T) B_e^T for expert e."""

    a_ERH: Tensor
    b_EOR: Tensor
    scale: float

    def of(self, expert: int, x_TH: Tensor) -> Tensor:
        """What the adapter adds to the expert's output for these tokens, in the tokens' precision."""
        return linear(linear(x_TH, self.a_ERH[expert].to(x_TH.dtype)), (self.scale * self.b_EOR[expert]).to(x_TH.dtype))


class FrozenStack:
    """The frozen weights of all experts, [E, O, I]. Without gradients on a CPU in bfloat16 they are multiplied in oneDNN's own
    layout, into which they are copied once: it would otherwise rearrange all of them at every token, half of the time of decoding."""

    def __init__(self, weight_EOI: Tensor) -> None:
        self.weight_EOI = weight_EOI.detach()
        self._packed: list[Tensor] | None = None
        self._packs = weight_EOI.device.type == "cpu" and weight_EOI.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def times(self, expert: int, x_TI: Tensor) -> Tensor:
        """``x W_e^T``: [T, O]."""
        if not self._packs or torch.is_grad_enabled() or x_TI.shape[0] > DECODING_ROWS:
            return linear(x_TI, self.weight_EOI[expert])
        if self._packed is None:
            self._packed = [torch.ops.mkldnn._reorder_linear_weight(weight_OI, DECODING_ROWS) for weight_OI in self.weight_EOI]
        return torch.ops.mkldnn._linear_pointwise(x_TI, self._packed[expert], None, "none", [], "")


def experts_forward(x_TH: Tensor, chosen_TK: Tensor, weights_TK: Tensor, gate_up_stack: FrozenStack, down_stack: FrozenStack,
                    act: Callable[[Tensor], Tensor], gate_up: Factors | None, down: Factors | None, first: int = 0) -> Tensor:  # fmt: skip
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
        y = gate_up_stack.times(own, h)
        if gate_up is not None:
            y = y + gate_up.of(first + own, h)
        gate, up = y.chunk(2, dim=-1)
        z = act(gate) * up
        out = down_stack.times(own, z)
        if down is not None:
            out = out + down.of(first + own, z)
        outputs.append(out * weights[mine, None].to(out.dtype))
    found = torch.cat(outputs or [x_TH[:0]])  # a sum over no pairs is still a function of x
    return torch.zeros_like(x_TH).index_add(0, tokens[begin:start], found)
