"""The arithmetic of serving LoRA with rows grouped by adapter: plain tensor products that know nothing of vLLM.

Shapes: ``T`` tokens of a batch, ``S`` adapter slots, ``E`` experts, ``K`` experts a token, ``H`` hidden, ``I`` intermediate, ``R`` rank.
A slot of -1 means that the token has no adapter. vLLM's own CPU operations index ``weights[-1]`` for such a token and so
give it the *last* slot's adapter in a batch that mixes both; grouping leaves it alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

NO_ADAPTER = -1


@dataclass(frozen=True)
class Groups:
    """Which rows of a batch belong to which adapter, found once a batch and used by every layer."""

    slots_T: Tensor
    rows: tuple[tuple[int, Tensor | None], ...]
    """Slot and its row indices; None stands for all rows. Rows without an adapter are in no group."""


def group_rows(slots_T: Tensor) -> Groups:
    """Group the rows of a batch by their slot."""
    slots = slots_T.unique().tolist()
    if len(slots) == 1:
        return Groups(slots_T, () if slots[0] == NO_ADAPTER else ((int(slots[0]), None),))
    return Groups(slots_T, tuple((int(slot), (slots_T == slot).nonzero().squeeze(1)) for slot in slots if slot != NO_ADAPTER))


def add_linear_lora(
    output_TO: Tensor,
    input_TI: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    widths: Sequence[int],
    groups: Groups,
    scale: float = 1.0,
) -> None:
    """Add ``scale · x A^T B^T`` to the rows that have an adapter, in place.

    ``a[i]`` is (S, 1, R, in) and ``b[i]`` (S, 1, width_i, R): one pair for each of the projections that the layer packs side by side (q, k, v).
    """
    for slot, rows in groups.rows:
        x = input_TI if rows is None else input_TI[rows]
        start = 0
        for a_slice, b_slice, width in zip(a, b, widths, strict=True):
            delta = functional.linear(functional.linear(x, a_slice[slot, 0]), b_slice[slot, 0])
            if scale != 1.0:
                delta *= scale
            if rows is None:
                output_TO[:, start : start + width] += delta
            else:
                output_TO[:, start : start + width].index_add_(0, rows, delta)
            start += width


@dataclass(frozen=True)
class ExpertLora:
    """The adapters of one layer of experts, by slot.

    ``gate_up_a`` (S, E, R, H) and ``gate_up_b`` (S, E, width, R): two pairs for gate and up apart, or one for both fused.
    ``down_a`` (S, E, R, I), ``down_b`` (S, E, H, R). LoRA's scale is already in the b's.
    """

    gate_up_a: tuple[Tensor, ...]
    gate_up_b: tuple[Tensor, ...]
    down_a: Tensor
    down_b: Tensor


def experts(
    input_TH: Tensor,
    gate_up_E2IH: Tensor,
    down_EHI: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    lora: ExpertLora | None = None,
    groups: Groups | None = None,
) -> Tensor:
    """The weighted sum of each token's experts (SwiGLU, as in Mixtral), with the token's own adapter on each expert. Returns (T, H).

    Token-expert pairs are sorted by expert, so that each expert is two matrix products whatever the batch.
    """
    tokens, per_token = experts_TK.shape
    chosen = experts_TK.reshape(-1)
    order = chosen.argsort(stable=True)
    rows_by_pair = order // per_token
    counts = torch.bincount(chosen, minlength=gate_up_E2IH.shape[0]).tolist()
    intermediate = down_EHI.shape[2]
    x = input_TH[rows_by_pair]
    answers = torch.empty_like(x)
    split = lora is not None and groups is not None and any(rows is not None for _, rows in groups.rows)
    pair_slots = groups.slots_T[rows_by_pair] if groups is not None and split else None
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        pairs = slice(start, start + count)
        start += count
        gate_up = functional.linear(x[pairs], gate_up_E2IH[expert])
        own = _own_rows(groups, pair_slots, pairs) if lora is not None and groups is not None else ()
        if lora is not None:
            for slot, rows in own:
                left = 0
                for a, b in zip(lora.gate_up_a, lora.gate_up_b, strict=True):
                    _add_product(gate_up[:, left : left + b.shape[2]], x[pairs], a[slot, expert], b[slot, expert], rows)
                    left += b.shape[2]
        active = functional.silu(gate_up[:, :intermediate]).mul_(gate_up[:, intermediate:])
        answer = functional.linear(active, down_EHI[expert])
        if lora is not None:
            for slot, rows in own:
                _add_product(answer, active, lora.down_a[slot, expert], lora.down_b[slot, expert], rows)
        answers[pairs] = answer
    total = torch.zeros(tokens, input_TH.shape[1], dtype=torch.float32, device=input_TH.device)
    total.index_add_(0, rows_by_pair, answers.float() * weights_TK.reshape(-1)[order].float()[:, None])
    return total.to(input_TH.dtype)


def _own_rows(groups: Groups | None, pair_slots: Tensor | None, pairs: slice) -> tuple[tuple[int, Tensor | None], ...]:
    """The groups within one expert's pairs."""
    if groups is None or pair_slots is None:
        return groups.rows if groups is not None else ()
    slots = pair_slots[pairs]
    found = ((slot, (slots == slot).nonzero().squeeze(1)) for slot, _ in groups.rows)
    return tuple((slot, rows) for slot, rows in found if len(rows))


def _add_product(output: Tensor, x: Tensor, a: Tensor, b: Tensor, rows: Tensor | None) -> None:
    delta = functional.linear(functional.linear(x if rows is None else x[rows], a), b)
    if rows is None:
        output += delta
    else:
        output.index_add_(0, rows, delta)
