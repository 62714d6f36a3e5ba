"""Attention of one new token is the same function as torch's own."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from learner.kernels.attention import attend, of_one_token
from learner.models.sequence_packing import Branches, pack


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("mask", ["none", "bool", "added"])
def test_one_token_sees_what_torchs_own_attention_sees(key_heads: int, mask: str) -> None:
    draw = torch.Generator().manual_seed(key_heads)
    query_BQD = torch.randn(3, 6, 8, generator=draw)
    key_BGND, value_BGNV = torch.randn(3, key_heads, 5, 8, generator=draw), torch.randn(3, key_heads, 5, 4, generator=draw)
    there = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    given = {"none": None, "bool": there, "added": torch.zeros(there.shape).masked_fill(~there, -1e30)}[mask]
    repeated = [heads.repeat_interleave(6 // key_heads, dim=1) for heads in (key_BGND, value_BGNV)]

    expected_BQV = scaled_dot_product_attention(query_BQD[:, :, None], *repeated, attn_mask=given, scale=0.3)[:, :, 0]

    torch.testing.assert_close(of_one_token(query_BQD, key_BGND, value_BGNV, given, 0.3), expected_BQV)


def test_one_token_is_answered_in_the_precision_it_asked_in() -> None:
    draw = torch.Generator().manual_seed(0)
    query_BQD, key_BGND, value_BGNV = (torch.randn(*shape, generator=draw).bfloat16() for shape in ((2, 4, 8), (2, 2, 3, 8), (2, 2, 3, 8)))

    found = of_one_token(query_BQD, key_BGND, value_BGNV, None)

    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), of_one_token(query_BQD.float(), key_BGND.float(), value_BGNV.float(), None), atol=0.01, rtol=0.01)


def test_of_packed_rollouts_only_what_may_be_seen_is_computed_and_nothing_else_changes() -> None:
    rows = [Branches((1, 2, 3), ((4, 5), (), (6,))), Branches((1,), ((2, 3, 4, 5), (6, 7))), Branches((9, 9, 9, 9, 9), ((1, 2), (3,)))]
    packed, draw = pack(rows, padding_id=0), torch.Generator().manual_seed(0)
    assert packed.layout is not None
    width = packed.ids_RN.shape[1]
    states = [torch.randn(3, heads, width, size, generator=draw, requires_grad=True) for heads, size in ((4, 8), (2, 8), (2, 6))]
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    there_RN = torch.arange(width) < torch.tensor([row.tokens for row in rows])[:, None]
    upstream = torch.randn(3, width, 4, 6, generator=draw) * there_RN[:, :, None, None]

    found, _ = attend(module, *states, packed.visible_RNN[:, None], 0.3, layout=packed.layout)
    gradients = torch.autograd.grad((found * upstream).sum(), states)
    expected, _ = attend(module, *states, packed.visible_RNN[:, None], 0.3)
    wanted = torch.autograd.grad((expected * upstream).sum(), states)

    torch.testing.assert_close(found[there_RN], expected[there_RN])
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other)


def test_one_output_a_prompt_has_nothing_to_leave_out() -> None:
    assert pack([Branches((1, 2), ((3,),)), Branches((1,), ((2,),))], padding_id=0).layout is None
    assert pack([Branches((1, 2), ((), ()))], padding_id=0).layout is None
