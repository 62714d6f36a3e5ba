"""Packs rollouts for one forward pass: a group's prompt is computed once, and its rollouts continue it as branches.

A row is ``prompt, output 1, output 2, …``. A token sees the prompt and its own branch only, and every branch continues the
prompt's positions, so each log-probability equals that of the sequence on its own, without computing a prompt once a sample.
Shapes: ``R`` rows, ``N`` tokens a row (padded), ``B`` rollouts, ``T`` output tokens (padded), ``K`` output tokens in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where prompts and outputs lie in R x N, as flat indices, so that attention need not compute every pair of a row to mask most of them.

    ``P`` prompt tokens (padded). What stands in padding is any index, and means nothing.
    """

    stem_RP: Tensor
    stem_there_RP: Tensor
    output_BT: Tensor
    output_there_BT: Tensor
    row_B: Tensor
    """The row whose prompt each output continues."""
    stem_B: Tensor
    """How many tokens the prompt of each output has."""
    visible_BTM: Tensor
    """True where an output's token may attend: to its prompt (the first P columns) and to the earlier tokens of its own output."""
    stem_visible_PP: Tensor | None = None
    """The same for a prompt's tokens, [P, P]; None: each sees all before it."""

    def on(self, device: torch.device | None) -> "Layout":
        """The same with its tensors on a device."""
        moved: dict[str, Any] = {name: None if tensor is None else tensor.to(device) for name, tensor in vars(self).items()}
        return Layout(**moved)

    def windowed(self, window: int | None) -> "Layout":
        """The same, where a token sees only the ``window`` tokens up to itself."""
        width = self.stem_RP.shape[1]
        if window is None or window >= width + self.output_BT.shape[1]:
            return self
        stem_P, step_T = torch.arange(width, device=self.stem_B.device), torch.arange(self.output_BT.shape[1], device=self.stem_B.device)
        own_BT = self.stem_B[:, None] + step_T
        keys_BM = torch.cat([stem_P.expand(len(own_BT), -1), own_BT], dim=1)
        near_BTM = own_BT[:, :, None] - keys_BM[:, None] < window
        back_PP = stem_P[:, None] - stem_P
        return replace(self, visible_BTM=self.visible_BTM & near_BTM, stem_visible_PP=(back_PP >= 0) & (back_PP < window))


@dataclass(frozen=True)
class Packed:
    """The tensors of one forward pass."""

    ids_RN: Tensor
    positions_RN: Tensor
    visible_RNN: Tensor
    """True where a token (row) may attend to another (column). Padding attends to itself, so that no softmax is empty. On a GPU one cell, where
    ``layout`` or ``causal`` says it all."""
    source_K: Tensor
    """For each output token, in order of rollouts, the flat index into R x N of the token that predicts it."""
    target_K: Tensor
    mask_BT: Tensor
    """True on output tokens; its true cells, row by row, are the K tokens."""
    layout: Layout | None = None
    """None where attention gains nothing by it: one output a prompt, or none that says anything."""
    causal: bool = False
    """Every row is one sequence, so a token may attend to all before it and needs no mask. Only said where it is of use: on a GPU, whose fastest
    attention takes none."""

    @property
    def tokens(self) -> int:
        """Tokens that the forward pass computes, padding included."""
        return self.ids_RN.numel()

    def spread(self, values_K: Tensor) -> Tensor:
        """Values of the output tokens in [B, T], zero on padding. Differentiable."""
        values_BT = values_K.new_zeros(self.mask_BT.shape)
        values_BT[self.mask_BT] = values_K
        return values_BT


@dataclass(frozen=True)
class Branches:
    """One row: a prompt and the outputs that continue it."""

    prompt_ids: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return len(self.prompt_ids) + sum(map(len, self.outputs))


def pack(rows: Sequence[Branches], padding_id: int, device: torch.device | None = None) -> Packed:
    """Lay rows out side by side. Every prompt has at least one token; an output may be empty."""
    if any(not row.prompt_ids for row in rows):
        raise ValueError("a prompt without tokens predicts nothing")
    width = max(row.tokens for row in rows)
    ids_RN = torch.full((len(rows), width), padding_id)
    positions_RN = torch.zeros(len(rows), width, dtype=torch.long)
    lengths = [len(output) for row in rows for output in row.outputs]
    on_gpu = device is not None and device.type != "cpu"
    causal = on_gpu and all(len(row.outputs) <= 1 for row in rows)
    masked = not on_gpu or not (causal or _has_branches(rows, lengths))
    visible_RNN = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1) if masked else torch.ones(len(rows), 1, 1, dtype=torch.bool)
    source: list[int] = []
    target: list[int] = []
    for r, row in enumerate(rows):
        stem = len(row.prompt_ids)
        ids_RN[r, :stem] = torch.tensor(row.prompt_ids)
        positions_RN[r, :stem] = torch.arange(stem)
        if masked:
            visible_RNN[r, :stem, :stem] = torch.ones(stem, stem, dtype=torch.bool).tril()
        start = stem
        for output in row.outputs:
            n = len(output)
            end = start + n
            ids_RN[r, start:end] = torch.tensor(output, dtype=torch.long)
            positions_RN[r, start:end] = torch.arange(stem, stem + n)
            if masked:
                visible_RNN[r, start:end, :stem] = True
                visible_RNN[r, start:end, start:end] = torch.ones(n, n, dtype=torch.bool).tril()
            source += [r * width + p for p in ([stem - 1, *range(start, end - 1)] if n else [])]
            target += output
            start = end
    mask_BT = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    layout = _layout(rows, width, mask_BT) if _has_branches(rows, lengths) else None
    tensors = (ids_RN, positions_RN, visible_RNN, torch.tensor(source, dtype=torch.long), torch.tensor(target, dtype=torch.long), mask_BT)
    ids_RN, positions_RN, visible_RNN, source_K, target_K, mask_BT = (tensor.to(device) for tensor in tensors)
    return Packed(ids_RN, positions_RN, visible_RNN, source_K, target_K, mask_BT, layout.on(device) if layout is not None else None, causal)


def _has_branches(rows: Sequence[Branches], lengths: Sequence[int]) -> bool:
    """More outputs than prompts, of which one says something."""
    return len(lengths) > len(rows) and any(lengths)


def _layout(rows: Sequence[Branches], width: int, mask_BT: Tensor) -> Layout:
    stems = torch.tensor([len(row.prompt_ids) for row in rows])
    row_B = torch.tensor([r for r, row in enumerate(rows) for _ in row.outputs])
    length_B, stem_P, step_T = mask_BT.sum(1), torch.arange(int(stems.max())), torch.arange(mask_BT.shape[1])
    begun = length_B.cumsum(0) - length_B  # of all rows; less what the rows before had
    first_B = row_B * width + stems[row_B] + begun - begun[torch.searchsorted(row_B, row_B)]
    seen_BTP = (stem_P < stems[row_B, None])[:, None].expand(-1, len(step_T), -1)
    own_BTT = (step_T <= step_T[:, None]).expand(len(row_B), -1, -1)
    return Layout(
        stem_RP=torch.arange(len(rows))[:, None] * width + stem_P,
        stem_there_RP=stem_P < stems[:, None],
        output_BT=(first_B[:, None] + step_T).clamp(max=len(rows) * width - 1),
        output_there_BT=mask_BT,
        row_B=row_B,
        stem_B=stems[row_B],
        visible_BTM=torch.cat([seen_BTP, own_BTT], dim=-1),
    )


def microbatches(rows: Sequence[Branches], max_tokens: int) -> list[list[int]]:
    """Row numbers by pass, so that no pass computes more than ``max_tokens`` (padding counted); a larger row goes alone.

    Rows of like width go together, which keeps padding small; the order within a pass is free because losses are sums.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(rows)), key=lambda n: -rows[n].tokens):
        widest = rows[batches[-1][0]].tokens if batches else 0
        if batches and widest * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches
