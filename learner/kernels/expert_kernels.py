"""How a layer's experts are multiplied with their adapter: one after the other, which suits a CPU, or all in grouped products, for a GPU.

One interface; both compute the same function (tests/unit/learner/test_expert_kernels.py holds the second to the first, gradients too).
"""

from collections.abc import Mapping, Set
from typing import Any, Protocol

import torch
from torch import Tensor

from learner.kernels.expert_lora import Factors, FrozenStack, experts_forward
from learner.kernels.grouped_experts import ALIGNED, GroupedStack, grouped_experts_forward
from learner.models.compute_settings import ComputeSettings

GATE_UP, DOWN = "gate_up_proj", "down_proj"
GROUPED_SINCE = (8, 0)
"""Compute capability from which on torch has grouped products in bfloat16."""


class ExpertKernel(Protocol):
    """Weighted sum over each token's chosen experts, [T, H]; ``adapted``: names of the parameters whose adapter is on."""

    def __call__(self, x_TH: Tensor, chosen_TK: Tensor, weights_TK: Tensor, adapted: Set[str]) -> Tensor: ...


class LoopedExperts:
    """Expert after expert, of those that this process holds, from number ``first`` on."""

    def __init__(self, experts: Any, adapters: Mapping[str, Factors], packs: bool, first: int) -> None:
        self._stacks = FrozenStack(experts.gate_up_proj, packs), FrozenStack(experts.down_proj, packs)
        self._adapters, self._act, self._first = adapters, experts.act_fn, first

    def __call__(self, x_TH: Tensor, chosen_TK: Tensor, weights_TK: Tensor, adapted: Set[str]) -> Tensor:
        factors = {name: self._adapters[name].cast(x_TH.dtype) for name in adapted}
        return experts_forward(x_TH, chosen_TK, weights_TK, *self._stacks, self._act, factors.get(GATE_UP), factors.get(DOWN), self._first)


class GroupedExperts:
    """All of them at once. The module's own weights become views of this kernel's, so that they lie on the device once."""

    def __init__(self, experts: Any, adapters: Mapping[str, Factors], first: int, in_all: int) -> None:
        self._stacks = [GroupedStack(getattr(experts, name), adapters[name].rank if name in adapters else 0) for name in (GATE_UP, DOWN)]
        for name, stack in zip((GATE_UP, DOWN), self._stacks, strict=True):
            getattr(experts, name).data = stack.weight_EOI
        self._looped = LoopedExperts(experts, adapters, False, first)
        self._adapters, self._act, self._first, self._in_all = adapters, experts.act_fn, first, in_all
        self._own = slice(first, first + len(experts.gate_up_proj))

    def __call__(self, x_TH: Tensor, chosen_TK: Tensor, weights_TK: Tensor, adapted: Set[str]) -> Tensor:
        gate_up_stack, down_stack = self._stacks
        if x_TH.dtype != gate_up_stack.weight_EOI.dtype:  # a pass in float32 over a base in bfloat16, for an adapter's probes
            return self._looped(x_TH, chosen_TK, weights_TK, adapted)
        whole = {name: self._adapters[name].stacked(x_TH.dtype) for name in adapted}
        factors = {name: (a_ERI[self._own], b_EOR[self._own]) for name, (a_ERI, b_EOR) in whole.items()}
        return grouped_experts_forward(x_TH, chosen_TK, weights_TK, gate_up_stack, down_stack, self._act, factors.get(GATE_UP), factors.get(DOWN),
                                       self._first, self._in_all)  # fmt: skip


def kernel_for(experts: Any, adapters: Mapping[str, Factors], settings: ComputeSettings, first: int, in_all: int) -> ExpertKernel:
    """The kernel that settings and device choose for fused experts whose weights lie where they are computed."""
    wanted = settings.expert_products
    if wanted == "grouped" or (wanted == "auto" and can_group(experts.gate_up_proj)):
        return GroupedExperts(experts, adapters, first, in_all)
    return LoopedExperts(experts, adapters, settings.packs_weights, first)


def can_group(weight_EOI: Tensor) -> bool:
    """True on a GPU that has grouped products in this precision, for sizes that they take."""
    on_gpu = weight_EOI.device.type == "cuda" and torch.cuda.get_device_capability(weight_EOI.device) >= GROUPED_SINCE
    return on_gpu and weight_EOI.dtype == torch.bfloat16 and all(size % (2 * ALIGNED) == 0 for size in weight_EOI.shape[1:])
