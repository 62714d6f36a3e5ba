"""Products grouped by adapter equal a plain loop over tokens."""

import pytest
import torch
from torch import Tensor

from actor.lora_products import ExpertLora, add_linear_lora, experts, group_rows

SLOTS, EXPERTS, PER_TOKEN, HIDDEN, INTERMEDIATE, RANK = 3, 4, 2, 12, 20, 5
MIXES = {
    "no token has an adapter": [-1, -1, -1, -1, -1, -1, -1],
    "all tokens have the same": [1, 1, 1, 1, 1, 1, 1],
    "adapters and base are mixed": [2, -1, 0, 0, -1, 2, 1],
    "one adapter and base": [-1, 2, -1, -1, -1, -1, 2],
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_each_row_gets_its_own_adapter_and_a_row_without_one_is_left_alone(mix: list[int]) -> None:
    widths = (6, 3, 3)
    x, before = draw(len(mix), HIDDEN, seed=1), draw(len(mix), sum(widths), seed=2)
    a = [draw(SLOTS, 1, RANK, HIDDEN, seed=10 + i) for i in range(3)]
    b = [draw(SLOTS, 1, width, RANK, seed=20 + i) for i, width in enumerate(widths)]
    expected = before.clone()
    for row, slot in enumerate(mix):
        if slot >= 0:
            expected[row] += 0.5 * torch.cat([b_i[slot, 0] @ (a_i[slot, 0] @ x[row]) for a_i, b_i in zip(a, b, strict=True)])
    output = before.clone()
    add_linear_lora(output, x, a, b, widths, group_rows(torch.tensor(mix)), scale=0.5)
    torch.testing.assert_close(output, expected)


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
def test_grouped_experts_equal_experts_with_the_adapter_merged(mix: list[int], fused: bool) -> None:
    x = draw(len(mix), HIDDEN, seed=1)
    gate_up, down = draw(EXPERTS, 2 * INTERMEDIATE, HIDDEN, seed=2), draw(EXPERTS, HIDDEN, INTERMEDIATE, seed=3)
    weights, chosen = draw(len(mix), EXPERTS, seed=4).softmax(-1).topk(PER_TOKEN)
    lora = lora_of_experts(fused)
    output = experts(x, gate_up, down, weights, chosen, lora, group_rows(torch.tensor(mix)))
    expected = token_by_token(x, gate_up, down, weights, chosen, lora, mix)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-4)  # the sum over experts is in float32


def test_without_adapters_the_experts_are_the_base() -> None:
    mix = MIXES["no token has an adapter"]
    x = draw(len(mix), HIDDEN, seed=1)
    gate_up, down = draw(EXPERTS, 2 * INTERMEDIATE, HIDDEN, seed=2), draw(EXPERTS, HIDDEN, INTERMEDIATE, seed=3)
    weights, chosen = draw(len(mix), EXPERTS, seed=4).softmax(-1).topk(PER_TOKEN)
    expected = token_by_token(x, gate_up, down, weights, chosen, None, mix)
    torch.testing.assert_close(experts(x, gate_up, down, weights, chosen), expected, rtol=1e-5, atol=1e-3)
