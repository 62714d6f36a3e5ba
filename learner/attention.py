"""Attention of a policy: transformers' own, but for the one new token of each row while rollouts are sampled on a CPU.

There torch's flash kernel takes 2 ms a layer for 32 rows of 50 keys, a fifth of all decoding, which two plain products in float32 do in a tenth.
Shapes: ``B`` rows, ``Q`` query heads, ``G`` key heads, ``N`` keys, ``D`` and ``V`` sizes of a head's keys and values.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "tidemill"
"""What transformers knows it by (``attn_implementation``)."""


def attend(module: Any, query_BQTD: Tensor, key_BGND: Tensor, value_BGNV: Tensor, mask: Tensor | None, scaling: float | None = None,
           **named: Any) -> tuple[Tensor, None]:  # fmt: skip
    """As transformers calls it; the answer is [B, T, Q, V]."""
    decodes = query_BQTD.shape[2] == 1 and query_BQTD.device.type == "cpu" and not torch.is_grad_enabled() and named.get("position_bias") is None
    if not decodes:
        return sdpa_attention_forward(module, query_BQTD, key_BGND, value_BGNV, mask, scaling=scaling, **named)
    return of_one_token(query_BQTD[:, :, 0], key_BGND, value_BGNV, mask, scaling)[:, None], None


def of_one_token(query_BQD: Tensor, key_BGND: Tensor, value_BGNV: Tensor, mask: Tensor | None, scaling: float | None = None) -> Tensor:
    """Attention of one token a row to all keys, [B, Q, V], computed in float32. ``mask``, [B or 1, 1, 1, N]: True where a key may be seen, or a
    number that is added to the score."""
    rows, groups, keys, size = key_BGND.shape
    query_CSD = query_BQD.reshape(rows * groups, -1, size).float()  # C: every row's key heads, S: the query heads that share each
    scores_CSN = torch.bmm(query_CSD, key_BGND.reshape(-1, keys, size).float().transpose(1, 2)) * (size**-0.5 if scaling is None else scaling)
    if mask is not None:
        scores_BGSN = scores_CSN.view(rows, groups, -1, keys)
        scores_BGSN = scores_BGSN.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores_BGSN + mask
        scores_CSN = scores_BGSN.view_as(scores_CSN)
    seen_CSV = torch.bmm(scores_CSN.softmax(dim=-1), value_BGNV.reshape(rows * groups, keys, -1).float())
    return seen_CSV.view(rows, -1, seen_CSV.shape[-1]).to(query_BQD.dtype)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
