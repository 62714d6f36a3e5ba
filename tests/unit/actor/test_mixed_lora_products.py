"""Products of all adapters side by side equal a plain loop over tokens."""

import pytest
import torch
from torch import Tensor

from actor.adapters.mixed_lora_products import ExpertLora, FrozenWeight, Mix, experts, linear_lora, mix_of
from reward.features.frozen_product import can_pack

SLOTS, EXPERTS, PER_TOKEN, HIDDEN, INTERMEDIATE, RANK = 3, 4, 2, 12, 20, 5
MIXES = {
    "no token has an adapter": [-1, -1, -1, -1, -1, -1, -1],
    "all tokens have the same": [1, 1, 1, 1, 1, 1, 1],
    "adapters and base are mixed": [2, -1, 0, 0, -1, 2, 1],
    "one adapter and base": [-1, 2, -1, -1, -1, -1, 2],
}


def mixed(mix: list[int], dtype: torch.dtype = torch.float64) -> Mix | None:
    return mix_of(torch.tensor(mix), RANK, dtype)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def frozen(weight_EOI: Tensor) -> list[FrozenWeight]:
    return [FrozenWeight(weight_OI) for weight_OI in weight_EOI]


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_each_row_gets_its_own_adapter_and_a_row_without_one_is_left_alone(mix: list[int]) -> None:
    widths = (6, 3, 3)
    x, before = draw(len(mix), HIDDEN, seed=1), draw(len(mix), sum(widths), seed=2)
    a = [draw(SLOTS, 1, RANK, HIDDEN, seed=10 + i) for i in range(3)]
    b = [draw(SLOTS, 1, width, RANK, seed=20 + i) for i, width in enumerate(widths)]
    expected = before.clone()
    for row, slot in enumerate(mix):
        if slot >= 0:
            expected[row] += torch.cat([b_i[slot, 0] @ (a_i[slot, 0] @ x[row]) for a_i, b_i in zip(a, b, strict=True)])
    for _ in range(2):  # the first time lays the adapters out side by side, the second finds them so
        output = before.clone()
        if (asked := mixed(mix)) is not None:
            output += linear_lora(x, a, b, asked)
        torch.testing.assert_close(output, expected)


def test_an_adapter_that_is_loaded_later_is_written_into_the_layout_in_use() -> None:
    a, b = draw(SLOTS, 1, RANK, HIDDEN, seed=1), draw(SLOTS, 1, 6, RANK, seed=2)
    x, mix = draw(2, HIDDEN, seed=3), mixed([0, 2])
    assert mix is not None
    with torch.inference_mode():  # as vLLM runs a batch
        linear_lora(x, [a], [b], mix)
    new_a, new_b = draw(RANK, HIDDEN, seed=4), draw(6, RANK, seed=5)
    a[2, 0].copy_(new_a)  # as vLLM loads one, outside of inference mode
    b[2, 0].copy_(new_b)
    output = linear_lora(x, [a], [b], mix)
    torch.testing.assert_close(output[1], new_b @ (new_a @ x[1]))


def test_a_batch_pays_for_the_slots_it_asks_for() -> None:
    assert mixed([-1, -1]) is None
    same, two = mixed([1, 1]), mixed([-1, 2, 1])
    assert same is not None
    assert two is not None
    assert (same.columns, same.own_TC) == (slice(RANK, 2 * RANK), None)
    assert two.columns == slice(RANK, 3 * RANK)
    assert two.own_TC is not None
    assert two.own_TC.tolist() == [[0] * 2 * RANK, [0] * RANK + [1] * RANK, [1] * RANK + [0] * RANK]


def lora_of_experts(fused: bool) -> ExpertLora:
    count, width = (1, 2 * INTERMEDIATE) if fused else (2, INTERMEDIATE)
    return ExpertLora(
        gate_up_a=tuple(draw(SLOTS, EXPERTS, RANK, HIDDEN, seed=30 + i) for i in range(count)),
        gate_up_b=tuple(draw(SLOTS, EXPERTS, width, RANK, seed=40 + i) for i in range(count)),
        down_a=draw(SLOTS, EXPERTS, RANK, INTERMEDIATE, seed=50),
        down_b=draw(SLOTS, EXPERTS, HIDDEN, RANK, seed=51),
    )


def token_by_token(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor, lora: ExpertLora | None, mix: list[int]) -> Tensor:
    """The definition: merge each token's adapter into its experts and apply them one at a time."""
    output = torch.zeros_like(x)
    for token, slot in enumerate(mix):
        for weight, e in zip(weights[token], chosen[token].tolist(), strict=True):
            merged_gate_up, merged_down = gate_up[e].clone(), down[e].clone()
            if slot >= 0 and lora is not None:
                merged_gate_up += torch.cat([b[slot, e] @ a[slot, e] for a, b in zip(lora.gate_up_a, lora.gate_up_b, strict=True)])
                merged_down += lora.down_b[slot, e] @ lora.down_a[slot, e]
            gate, up = (merged_gate_up @ x[token]).chunk(2)
            output[token] += weight * (merged_down @ (torch.nn.functional.silu(gate) * up))
    return output


@pytest.mark.parametrize("fused", [False, True], ids=["gate and up apart", "gate and up fused"])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_experts_side_by_side_equal_experts_with_the_adapter_merged(mix: list[int], fused: bool) -> None:
    x = draw(len(mix), HIDDEN, seed=1)
    gate_up, down = draw(EXPERTS, 2 * INTERMEDIATE, HIDDEN, seed=2), draw(EXPERTS, HIDDEN, INTERMEDIATE, seed=3)
    weights, chosen = draw(len(mix), EXPERTS, seed=4).softmax(-1).topk(PER_TOKEN)
    lora = lora_of_experts(fused)
    output = experts(x, frozen(gate_up), frozen(down), weights, chosen, lora, mixed(mix))
    expected = token_by_token(x, gate_up, down, weights, chosen, lora, mix)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-4)  # the sum over experts is in float32


def test_without_adapters_the_experts_are_the_base() -> None:
    mix = MIXES["no token has an adapter"]
    x = draw(len(mix), HIDDEN, seed=1)
    gate_up, down = draw(EXPERTS, 2 * INTERMEDIATE, HIDDEN, seed=2), draw(EXPERTS, HIDDEN, INTERMEDIATE, seed=3)
    weights, chosen = draw(len(mix), EXPERTS, seed=4).softmax(-1).topk(PER_TOKEN)
    expected = token_by_token(x, gate_up, down, weights, chosen, None, mix)
    output = experts(x, frozen(gate_up), frozen(down), weights, chosen)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-3)


def test_in_bfloat16_experts_with_adapters_are_right_to_its_precision_at_any_number_of_rows() -> None:
    gate_up, down = draw(EXPERTS, 2 * INTERMEDIATE, HIDDEN, seed=2), draw(EXPERTS, HIDDEN, INTERMEDIATE, seed=3)
    lora = lora_of_experts(fused=True)
    low = ExpertLora(tuple(a.bfloat16() for a in lora.gate_up_a), tuple(b.bfloat16() for b in lora.gate_up_b),
                     lora.down_a.bfloat16(), lora.down_b.bfloat16())  # fmt: skip
    stacks = frozen(gate_up.bfloat16()), frozen(down.bfloat16())
    for mix in ([1, 2, -1], MIXES["adapters and base are mixed"] * 30):
        x = draw(len(mix), HIDDEN, seed=1)
        weights, chosen = draw(len(mix), EXPERTS, seed=4).softmax(-1).topk(PER_TOKEN)
        expected = token_by_token(x, gate_up, down, weights, chosen, lora, mix)
        output = experts(x.bfloat16(), *stacks, weights, chosen, low, mixed(mix, torch.bfloat16))
        assert float((output.double() - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_an_adapter_far_smaller_than_the_last_digit_of_a_product_shows_whole_on_average(packs: bool, biased: bool) -> None:
    """Added after the product was rounded, half of it and more is lost: rounding is then the same at every token."""
    rows, inputs, outputs = 64, 256, 256
    x = draw(rows, inputs, seed=1).bfloat16()
    weight, lora = draw(outputs, inputs, seed=2).bfloat16(), (0.01 * draw(rows, outputs, seed=3)).bfloat16()
    bias = draw(outputs, seed=4).bfloat16() if biased and can_pack(torch.bfloat16) and packs else None
    frozen = FrozenWeight(weight, packs)
    base, adapted = frozen.times(x, None, bias).double(), frozen.times(x, lora, bias).double()

    def share(output: Tensor) -> float:
        return float(((output - base) * lora.double()).sum() / (lora.double() ** 2).sum())

    assert 0.8 < share(adapted) < 1.2
    assert share((base.bfloat16() + lora).double()) < 0.5
