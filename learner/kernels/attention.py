"""Attention of a policy: transformers' own, but for two things on a CPU, and for two things that its own would leave out.

While rollouts are sampled, torch's flash kernel takes 2 ms a layer for the one new token of 32 rows of 50 keys, a fifth of all decoding, which
two plain products in float32 do in a tenth. While they are trained on, it computes every pair of a packed row's tokens, though outputs
of one prompt do not see each other: of eight outputs half as long as their prompt it masks seven pairs of ten.

A packed row comes with its own mask, which transformers takes as it is: a sliding window is put into it here, by the tokens' positions. And torch's
kernels know no sinks (gpt-oss), a logit of each head that takes a part of the attention: they get it as one more key.
Shapes: ``B`` rows (``R`` packed rows, as in learner/models/sequence_packing.py), ``Q`` query heads, ``G`` key heads, ``N`` keys, ``D`` and
``V`` sizes of a head's keys and values.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from learner.models.sequence_packing import Layout
from streams.core.errors import ConfigError

ATTENTION = "tidemill"
"""Its name in transformers (``attn_implementation``)."""
UNKNOWN = ("softcap", "logit_cap")
"""What some architectures tell their attention and torch's kernels ignore."""


def attend(module: Any, query_BQTD: Tensor, key_BGND: Tensor, value_BGNV: Tensor, mask: Tensor | None, scaling: float | None = None,
           **named: Any) -> tuple[Tensor, None]:  # fmt: skip
    """The function that transformers calls. Returns [B, T, Q, V]. ``packed_RN``: the positions of a packed row's tokens, where the model has
    sliding windows. ``causal``: each row is one sequence, and the mask says nothing. Raises ConfigError for a part of attention that it does not
    know."""
    layout: Layout | None = named.pop("layout", None)
    positions_RN: Tensor | None = named.pop("packed_RN", None)
    causal: bool = named.pop("causal", False)
    if unknown := [name for name in UNKNOWN if named.get(name) is not None]:
        raise ConfigError(f"this base's attention has {unknown[0]}, which the learner does not compute: it cannot be trained")
    window = named.get("sliding_window") if positions_RN is not None else None
    if layout is not None:
        return of_outputs(module, query_BQTD, key_BGND, value_BGNV, layout.windowed(window), scaling, **named), None
    if causal:
        mask = None if window is None else _causal_within(window, query_BQTD.shape[2], query_BQTD.device)
    elif window is not None and mask is not None and positions_RN is not None:
        mask = mask & (positions_RN[:, None, :, None] - positions_RN[:, None, None] < window)
    plain = named.get("position_bias") is None and named.get("s_aux") is None
    decodes = query_BQTD.shape[2] == 1 and query_BQTD.device.type == "cpu" and not torch.is_grad_enabled() and plain
    if not decodes:
        return _by_torch(module, query_BQTD, key_BGND, value_BGNV, mask, scaling, **named), None
    return of_one_token(query_BQTD[:, :, 0], key_BGND, value_BGNV, mask, scaling)[:, None], None


def _by_torch(module: Any, query_BQTD: Tensor, key_BGND: Tensor, value_BGNV: Tensor, mask: Tensor | None, scaling: float | None,
              s_aux: Tensor | None = None, **named: Any) -> Tensor:  # fmt: skip
    """Torch's own attention, [B, T, Q, V]; causal, where there is no mask. ``s_aux``: a sink's logit for each query head."""
    if s_aux is not None:
        tokens, keys = query_BQTD.shape[2], key_BGND.shape[2]
        if mask is None:
            mask = torch.ones(tokens, keys, dtype=torch.bool, device=query_BQTD.device).tril(keys - tokens)[None, None]
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=query_BQTD.dtype, device=mask.device).masked_fill(~mask, float("-inf"))
        heads = (query_BQTD.shape[0], query_BQTD.shape[1], tokens)
        sink_BQT1 = s_aux.to(mask.dtype)[None, :, None, None].expand(*heads, 1)
        mask = torch.cat([mask.expand(*heads, keys), sink_BQT1], dim=-1)
        key_BGND, value_BGNV = (torch.cat([states, torch.zeros_like(states[:, :, :1])], dim=2) for states in (key_BGND, value_BGNV))
    found_BTQV, _ = sdpa_attention_forward(module, query_BQTD, key_BGND, value_BGNV, mask, scaling=scaling, **named)
    return found_BTQV


def _causal_within(window: int, tokens: int, device: torch.device) -> Tensor:
    """[1, 1, T, T]: True for a token and those before it, ``window`` in all."""
    back_TT = torch.arange(tokens, device=device)[:, None] - torch.arange(tokens, device=device)
    return ((back_TT >= 0) & (back_TT < window))[None, None]


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


def of_outputs(module: Any, query_RQND: Tensor, key_RGND: Tensor, value_RGNV: Tensor, layout: Layout, scaling: float | None, **named: Any) -> Tensor:
    """Attention of packed rollouts, [R, N, Q, V]: of the prompts to themselves, and of each output to its prompt and itself; zero on padding."""
    query_AQD, key_AGD, value_AGV = (states.transpose(1, 2).flatten(0, 1) for states in (query_RQND, key_RGND, value_RGNV))  # A: all tokens, R x N
    query_RQPD, key_RGPD, value_RGPV = (states[layout.stem_RP].transpose(1, 2) for states in (query_AQD, key_AGD, value_AGV))
    near = layout.stem_visible_PP
    stems_RPQV = _by_torch(module, query_RQPD, key_RGPD, value_RGPV, None if near is None else near[None, None], scaling, **named)
    query_BQTD, key_BGTD, value_BGTV = (states[layout.output_BT].transpose(1, 2) for states in (query_AQD, key_AGD, value_AGV))
    key_BGMD, value_BGMV = (torch.cat([stem[layout.row_B], own], dim=2) for stem, own in ((key_RGPD, key_BGTD), (value_RGPV, value_BGTV)))
    outputs_BTQV = _by_torch(module, query_BQTD, key_BGMD, value_BGMV, layout.visible_BTM[:, None], scaling, **named)
    answer_AQV = torch.cat([stems_RPQV.flatten(0, 1), outputs_BTQV.flatten(0, 1)])
    spare = len(query_AQD)  # one row more, for padding: how many are real is not asked, since a GPU would have to be waited for
    places = (layout.stem_RP.where(layout.stem_there_RP, spare), layout.output_BT.where(layout.output_there_BT, spare))
    places_A = torch.cat([each.flatten() for each in places])
    whole_AQV = answer_AQV.new_zeros(spare + 1, *answer_AQV.shape[1:]).index_copy(0, places_A, answer_AQV)[:spare]
    return whole_AQV.unflatten(0, (query_RQND.shape[0], -1))


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
