"""What a GPU would compute with, on the CPU: the whole policy with grouped experts, and attention without masks, beside the CPU's own."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from learner.kernels.attention import attend
from learner.kernels.expert_kernels import GroupedExperts, LoopedExperts, can_group, kernel_for
from learner.models.float32_pass import Float32Pass
from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.settings import LearnerSettings

ROWS = [Branches((1, 50, 900, 44), ((7, 8, 9), (300, 20), (5, 5, 5, 5, 6))), Branches((1, 5), ((4000, 41, 17, 2), (6,)))]
META = torch.device("meta")


def policy(base: Path, products: str, dtype: str = "float32") -> Policy:
    made = Policy(base, LearnerSettings.model_validate({"dtype": dtype, "expert_products": products, "rank": 6}))
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters.values():
            weight.copy_(torch.randn(weight.shape, generator=chance) * 0.05)
    return made


def logprobs_and_gradients(one: Policy) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    packed = pack(ROWS, 2)
    logprobs_BT = one.stats(packed).logprobs_BT
    slopes = torch.autograd.grad(logprobs_BT.sum(), list(one.parameters.values()))
    return logprobs_BT[packed.mask_BT].detach(), dict(zip(one.parameters, slopes, strict=True))


def test_a_policy_with_grouped_experts_is_the_same_policy(tiny_base: Path) -> None:
    looped, grouped = policy(tiny_base, "each"), policy(tiny_base, "grouped")
    (expected, slopes), (found, own_slopes) = logprobs_and_gradients(looped), logprobs_and_gradients(grouped)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for name, slope in slopes.items():
        assert float((own_slopes[name] - slope).norm()) <= 1e-3 * float(slope.norm()), name
    with torch.no_grad(), looped.reference(), grouped.reference():
        bare, own_bare = (one.stats(pack(ROWS, 2)).logprobs_BT for one in (looped, grouped))
    torch.testing.assert_close(own_bare, bare, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(bare[pack(ROWS, 2).mask_BT], expected, atol=1e-2)


def test_in_bfloat16_its_gradients_are_those_of_float32(tiny_base: Path) -> None:
    exact, rough = policy(tiny_base, "each"), policy(tiny_base, "grouped", "bfloat16")
    (_, slopes), (_, own_slopes) = logprobs_and_gradients(exact), logprobs_and_gradients(rough)
    found, expected = (torch.cat([each[name].float().flatten() for name in slopes]) for each in (own_slopes, slopes))
    assert float(torch.cosine_similarity(found, expected, dim=0)) >= 0.99
    near = expected.abs() > 0.01 * expected.abs().max()
    assert float(((found - expected).abs() / expected.abs())[near].median()) <= 0.03


def test_a_pass_in_float32_over_a_base_in_bfloat16_goes_expert_by_expert(tiny_base: Path) -> None:
    looped, grouped = policy(tiny_base, "each", "bfloat16"), policy(tiny_base, "grouped", "bfloat16")
    with torch.no_grad(), Float32Pass():
        expected, found = (one.stats(pack(ROWS, 2)).logprobs_BT for one in (looped, grouped))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_decoding_gives_the_same_next_token_logits(tiny_base: Path) -> None:
    looped, grouped = policy(tiny_base, "each"), policy(tiny_base, "grouped")
    ids = torch.tensor([[1, 50, 900, 44], [1, 5, 6, 7]])
    with torch.inference_mode(), looped.decoding(), grouped.decoding():
        expected, found = (one.next_logits(input_ids=ids) for one in (looped, grouped))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_kernel_is_chosen_by_device_and_by_setting() -> None:
    experts = SimpleNamespace(
        gate_up_proj=torch.nn.Parameter(torch.randn(2, 32, 16)), down_proj=torch.nn.Parameter(torch.randn(2, 16, 16)), act_fn=torch.relu
    )
    assert not can_group(experts.gate_up_proj)
    assert isinstance(kernel_for(experts, {}, LearnerSettings(), 0, 2), LoopedExperts)
    made = kernel_for(experts, {}, LearnerSettings(expert_products="grouped"), 0, 2)
    assert isinstance(made, GroupedExperts)
    assert experts.gate_up_proj.data_ptr() == made._stacks[0]._whole.data_ptr()  # the base lies there once


@pytest.mark.parametrize("window", [None, 3, 100])
def test_where_each_row_is_one_sequence_attention_needs_no_mask(window: int | None) -> None:
    rows = [Branches((1, 2, 3), ((4, 5, 6),)), Branches((1,), ((2, 3),)), Branches((9, 9, 9, 9, 9), ())]
    packed, draw = pack(rows, padding_id=0), torch.Generator().manual_seed(0)
    width = packed.ids_RN.shape[1]
    states = [torch.randn(3, heads, width, size, generator=draw, requires_grad=True) for heads, size in ((4, 8), (2, 8), (2, 8))]
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    there_RN = torch.arange(width) < torch.tensor([row.tokens for row in rows])[:, None]
    upstream = torch.randn(3, width, 4, 8, generator=draw) * there_RN[:, :, None, None]
    named = {} if window is None else {"sliding_window": window, "packed_RN": packed.positions_RN}
    unmasked, _ = attend(module, *states, torch.ones(3, 1, 1, 1, dtype=torch.bool), 0.3, causal=True, **named)
    masked, _ = attend(module, *states, packed.visible_RNN[:, None], 0.3, **named)
    torch.testing.assert_close(unmasked * there_RN[:, :, None, None], masked * there_RN[:, :, None, None])
    for found, expected in zip(*(torch.autograd.grad((each * upstream).sum(), states) for each in (unmasked, masked)), strict=True):
        torch.testing.assert_close(found, expected)


BRANCHED = [Branches((1, 2, 3), ((4, 5), (6, 7, 8))), Branches((1, 2), ((2, 3, 4, 5), (6, 7)))]
SINGLE = [Branches((1, 2, 3), ((4, 5, 6, 7),)), Branches((1,), ((2,),))]


@pytest.mark.parametrize("rows", [BRANCHED, SINGLE])
def test_attentions_gradients_in_bfloat16_are_those_of_float32(rows: list[Branches]) -> None:
    packed, module = pack(rows, padding_id=0), SimpleNamespace(num_key_value_groups=2, is_causal=True)
    width = packed.ids_RN.shape[1]
    there_RN = torch.arange(width) < torch.tensor([row.tokens for row in rows])[:, None]
    named = {"layout": packed.layout} if packed.layout is not None else {"causal": True}
    for seed in range(10):
        draw = torch.Generator().manual_seed(seed)
        given = [torch.randn(len(rows), heads, width, 16, generator=draw).bfloat16() for heads in (4, 2, 2)]
        upstream = torch.randn(len(rows), width, 4, 16, generator=draw) * there_RN[:, :, None, None]
        found = []
        for dtype in (torch.bfloat16, torch.float32):
            states = [each.to(dtype).requires_grad_() for each in given]
            out, _ = attend(module, *states, torch.ones(len(rows), 1, 1, 1, dtype=torch.bool), 0.25, **named)
            found.append([slope.float().flatten() for slope in torch.autograd.grad((out.float() * upstream).sum(), states)])
        for rough, exact in zip(*found, strict=True):
            assert float(torch.cosine_similarity(rough, exact, dim=0)) >= 0.99
            near = exact.abs() > 0.01 * exact.abs().max()
            assert float(((rough - exact).abs() / exact.abs())[near].median()) <= 0.03


@pytest.mark.parametrize(("rows", "causal", "branches"), [
    ([Branches((1, 2), ((3, 4),)), Branches((1,), ())], True, False), ([Branches((1, 2), ((3, 4), (5,)))], False, True),
    ([Branches((1, 2), ((3, 4), (5,))), Branches((1,), ())], False, False),
])  # fmt: skip
def test_on_a_gpu_the_large_mask_is_made_only_where_nothing_else_says_it(rows: list[Branches], causal: bool, branches: bool) -> None:
    there, here = pack(rows, 0, META), pack(rows, 0)
    assert (there.causal, there.layout is not None) == (causal, branches)
    assert (here.causal, here.layout is not None) == (False, branches)  # a CPU goes on as it did
    assert (there.visible_RNN.shape[-1] == 1) == (causal or branches)
    assert here.visible_RNN.shape[-1] == here.ids_RN.shape[1]
    if there.layout is not None:
        assert there.layout.output_BT.device == META


def test_a_whole_pass_without_masks_gives_the_same_logprobs(tiny_base: Path) -> None:
    one, rows = policy(tiny_base, "each"), [Branches((1, 50, 900, 44), ((7, 8, 9),)), Branches((1, 5), ((4000, 41, 17, 2),))]
    packed = pack(rows, 2)
    bare = replace(packed, causal=True, visible_RNN=torch.ones(len(rows), 1, 1, dtype=torch.bool))
    with torch.no_grad():
        torch.testing.assert_close(one.stats(bare).logprobs_BT, one.stats(packed).logprobs_BT, atol=1e-4, rtol=1e-4)
