"""LoRA for a batch that mixes adapters, as plain tensor products without vLLM.

All adapters of a layer are concatenated, as if they were one of rank ``S R``. Two thin products serve the whole batch, and between them a mask
keeps for each token the columns of its own adapter. When a batch uses few adapters, a slice of the columns suffices.

LoRA joins the product with the frozen weight before that is rounded to the tokens' precision. Added afterwards, in bfloat16, most of a small
adapter would be lost: what is less than half of the last digit of a product changes nothing, at each token the same way.

Shapes: ``T`` tokens of a batch, ``S`` adapter slots, ``R`` rank, ``C`` columns in use (at most ``S R``), ``E`` experts, ``K`` experts per
token, ``P`` pairs of token and expert, ``H`` hidden, ``I`` intermediate, ``O`` outputs. A slot of -1 means that the token has no adapter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from reward.features.frozen_product import can_pack, packed, packed_product, product

NO_ADAPTER = -1


@dataclass(frozen=True)
class Mix:
    """Which adapter each row of a batch uses; computed once per batch, for all layers."""

    columns: slice
    """Columns that the batch uses, from the first to the last."""
    own_TC: Tensor | None
    """1 where a column belongs to the row's adapter, else 0. None when all do."""

    def of(self, rows_P: Tensor) -> "Mix":
        """The same for these rows, given by their numbers in the batch."""
        return self if self.own_TC is None else Mix(self.columns, self.own_TC[rows_P])

    def between(self, rows: slice) -> "Mix":
        """The same for a range of rows."""
        return self if self.own_TC is None else Mix(self.columns, self.own_TC[rows])

    def lora(self, input_TI: Tensor, a_CI: Tensor, b_OC: Tensor) -> Tensor:
        """``x A^T B^T`` of each row's own adapter, [T, O]; all slots' ``a`` and ``b`` are given. Rows without an adapter get zeros."""
        low_TC = functional.linear(input_TI, a_CI[self.columns])
        if self.own_TC is not None:
            low_TC *= self.own_TC
        return functional.linear(low_TC, b_OC[:, self.columns])


def mix_of(slots_T: Tensor, rank: int, dtype: torch.dtype) -> Mix | None:
    """How a batch mixes adapters with ``rank`` columns per slot; None when no row has an adapter."""
    slots = slots_T.unique().tolist()
    adapters = [int(slot) for slot in slots if slot != NO_ADAPTER]
    if not adapters:
        return None
    first, last = adapters[0], adapters[-1]
    columns = slice(first * rank, (last + 1) * rank)
    if len(slots) == 1:
        return Mix(columns, None)
    slot_of_column_C = torch.arange(first, last + 1).repeat_interleave(rank)
    return Mix(columns, (slots_T[:, None] == slot_of_column_C).to(dtype))


def side_by_side_a(a_SERI: Tensor) -> Tensor:
    """All slots' A as [E, S R, I], a view of the same memory, which the first call reorders."""
    slots, experts, rank, inputs = a_SERI.shape
    _lay_out(a_SERI, (1, 0, 2, 3))
    return a_SERI.permute(1, 0, 2, 3).view(experts, slots * rank, inputs)


def side_by_side_b(b_SEOR: Tensor) -> Tensor:
    """All slots' B as [E, O, S R], likewise."""
    slots, experts, outputs, rank = b_SEOR.shape
    _lay_out(b_SEOR, (1, 2, 0, 3))
    return b_SEOR.permute(1, 2, 0, 3).view(experts, outputs, slots * rank)


def _lay_out(stacked: Tensor, order: tuple[int, int, int, int]) -> None:
    """Reorder the memory of a tensor of adapters to this order of dimensions. It is allocated outside of inference mode, because vLLM later writes
    adapters into it outside of inference mode."""
    if not stacked.permute(order).is_contiguous():
        back = [order.index(dimension) for dimension in range(4)]
        with torch.inference_mode(stacked.is_inference()), torch.no_grad():
            stacked.data = stacked.permute(order).contiguous().permute(back)


def linear_lora(input_TI: Tensor, a: Sequence[Tensor], b: Sequence[Tensor], mix: Mix) -> Tensor:
    """What LoRA adds to a linear layer, [T, sum of widths].

    ``a[i]`` is (S, 1, R, I) and ``b[i]`` (S, 1, width_i, R): one pair for each projection that the layer concatenates (q, k, v).
    """
    return _beside([mix.lora(input_TI, side_by_side_a(a_i)[0], side_by_side_b(b_i)[0]) for a_i, b_i in zip(a, b, strict=True)])


def _beside(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


class FrozenWeight:
    """The frozen weight of one linear projection, (O, I). Where it is ``packed`` it is kept in oneDNN's own layout alone: at every
    product it would otherwise rearrange it, most of the time of a small batch. In bfloat16 that is also faster than vLLM's kernel without AMX."""

    def __init__(self, weight_OI: Tensor, packs: bool = True) -> None:
        self.packed = packs and can_pack(weight_OI.dtype)
        self._weight = packed(weight_OI.detach()) if self.packed else weight_OI.detach()

    def times(self, x_TI: Tensor, lora_TO: Tensor | None = None, bias_O: Tensor | None = None) -> Tensor:
        """``x W^T + bias + lora``, [T, O], rounded once."""
        return (packed_product if self.packed else product)(x_TI, self._weight, lora_TO, bias_O)


@dataclass(frozen=True)
class ExpertLora:
    """The adapters of one layer of experts, by slot.

    ``gate_up_a`` (S, E, R, H) and ``gate_up_b`` (S, E, width, R): two pairs for separate gate and up, or one pair for both fused.
    ``down_a`` (S, E, R, I), ``down_b`` (S, E, H, R). The b's contain LoRA's scale.
    """

    gate_up_a: tuple[Tensor, ...]
    gate_up_b: tuple[Tensor, ...]
    down_a: Tensor
    down_b: Tensor


def swiglu(gate_up_PJ: Tensor) -> Tensor:
    """``silu(gate) * up``; all of gate stands before all of up."""
    gate, up = gate_up_PJ.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def clamped_swiglu(gate_up_PJ: Tensor, slope: float = 1.702, limit: float = 7.0) -> Tensor:
    """gpt-oss' gate; gate and up take turns."""
    gate, up = gate_up_PJ[:, ::2].clamp(max=limit), gate_up_PJ[:, 1::2].clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(gate * slope)


@dataclass(frozen=True)
class Gating:
    """What experts do between and beside their products."""

    activate: Callable[[Tensor], Tensor] = swiglu
    gate_up_bias_EJ: Tensor | None = None
    down_bias_EH: Tensor | None = None

    def biases(self, expert: int) -> tuple[Tensor | None, Tensor | None]:
        """Of one expert's two products."""
        return tuple(None if bias is None else bias[expert] for bias in (self.gate_up_bias_EJ, self.down_bias_EH))  # type: ignore[return-value]


def experts(
    input_TH: Tensor,
    gate_up: Sequence[FrozenWeight],
    down: Sequence[FrozenWeight],
    weights_TK: Tensor,
    experts_TK: Tensor,
    lora: ExpertLora | None = None,
    mix: Mix | None = None,
    gating: Gating | None = None,
) -> Tensor:
    """The weighted sum of each token's experts (SwiGLU, as in Mixtral, without another ``gating``), with its own adapter on each. Returns (T, H).

    ``gate_up`` and ``down`` hold one weight for each expert. Pairs are sorted by expert, so that each expert takes two matrix products for
    any batch.
    """
    tokens, per_token = experts_TK.shape
    chosen_P = experts_TK.reshape(-1)
    order_P = chosen_P.argsort(stable=True)
    rows_P = order_P // per_token
    x_PH = input_TH[rows_P]
    own = mix.of(rows_P) if mix is not None else None
    adapted = _Adapted(lora) if lora is not None and own is not None else None
    gating = gating or Gating()
    answers = []
    start = 0
    for expert, found in enumerate(torch.bincount(chosen_P, minlength=len(down)).tolist()):
        if found == 0:
            continue
        pairs = slice(start, start + found)
        start += found
        x = x_PH[pairs]
        of_gate_up, of_down = gating.biases(expert)
        if adapted is None or own is None:
            active = gating.activate(gate_up[expert].times(x, bias_O=of_gate_up))
            answers.append(down[expert].times(active, bias_O=of_down))
        else:
            mine = own.between(pairs)
            active = gating.activate(gate_up[expert].times(x, adapted.gate_up(expert, x, mine), of_gate_up))
            answers.append(down[expert].times(active, adapted.down(expert, active, mine), of_down))
    total = torch.zeros(tokens, input_TH.shape[1], dtype=torch.float32, device=input_TH.device)
    total.index_add_(0, rows_P, torch.cat(answers).float() * weights_TK.reshape(-1)[order_P].float()[:, None])
    return total.to(input_TH.dtype)


class _Adapted:
    """A layer's adapters, concatenated for each expert."""

    def __init__(self, lora: ExpertLora) -> None:
        self._gate_up = [(side_by_side_a(a), side_by_side_b(b)) for a, b in zip(lora.gate_up_a, lora.gate_up_b, strict=True)]
        self._down = side_by_side_a(lora.down_a), side_by_side_b(lora.down_b)

    def gate_up(self, expert: int, x_PH: Tensor, mix: Mix) -> Tensor:
        """What they add to one expert's gate and up, [P, 2 I]."""
        return _beside([mix.lora(x_PH, a[expert], b[expert]) for a, b in self._gate_up])

    def down(self, expert: int, active_PI: Tensor, mix: Mix) -> Tensor:
        """What they add to its output, [P, H]."""
        a, b = self._down
        return mix.lora(active_PI, a[expert], b[expert])
