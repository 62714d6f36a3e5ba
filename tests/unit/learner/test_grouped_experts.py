"""Experts in grouped products are the same function as expert by expert, forward and backward, also in the precision that is trained in."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from learner.kernels.expert_lora import Factors, FrozenStack, experts_forward
from learner.kernels.grouped_experts import GroupedStack, grouped_experts_forward

TOKENS, HIDDEN, WIDE, EXPERTS, PER_TOKEN = 40, 64, 32, 6, 2


class Layer:
    """Random experts with an adapter, tokens, and where they go."""

    def __init__(self, rank: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(*shape, generator=draw)

        self.gate_up, self.down = normal(EXPERTS, 2 * WIDE, HIDDEN, scale=0.1).to(dtype), normal(EXPERTS, HIDDEN, WIDE, scale=0.1).to(dtype)
        self.factors = [normal(EXPERTS * rank, HIDDEN, scale=0.1), normal(2 * WIDE, rank * EXPERTS, scale=0.1),
                        normal(EXPERTS * rank, WIDE, scale=0.1), normal(HIDDEN, rank * EXPERTS, scale=0.1)]  # fmt: skip
        self.x = normal(TOKENS, HIDDEN).to(dtype)
        logits = normal(TOKENS, EXPERTS)
        logits[:, 4] = -100  # an expert that nobody asks
        self.weights, self.chosen = torch.topk(logits.softmax(-1), PER_TOKEN)
        self.upstream, self.dtype = normal(TOKENS, HIDDEN), dtype

    def leaves(self) -> list[Tensor]:
        return [each.detach().clone().requires_grad_() for each in (self.x, self.weights, *self.factors)]

    def by_expert(self, adapted: bool, first: int = 0, last: int = EXPERTS) -> list[Tensor]:
        x, weights, *factors = leaves = self.leaves()
        casts = [Factors(a, b, 2.0, EXPERTS).cast(self.dtype) for a, b in (factors[:2], factors[2:])] if adapted else [None, None]
        stacks = [FrozenStack(weight[first:last], packs=False) for weight in (self.gate_up, self.down)]
        found = experts_forward(x, self.chosen, weights, *stacks, silu, *casts, first)
        return self._with_gradients(found, leaves, adapted)

    def grouped(self, adapted: bool, first: int = 0, last: int = EXPERTS) -> list[Tensor]:
        x, weights, *factors = leaves = self.leaves()
        rank = len(factors[0]) // EXPERTS
        both = [Factors(a, b, 2.0, EXPERTS).stacked(self.dtype) for a, b in (factors[:2], factors[2:])]
        stacks = [GroupedStack(weight[first:last], rank) for weight in (self.gate_up, self.down)]
        own = [(a[first:last], b[first:last]) for a, b in both] if adapted else [None, None]
        found = grouped_experts_forward(x, self.chosen, weights, *stacks, silu, *own, first, EXPERTS)
        return self._with_gradients(found, leaves, adapted)

    def _with_gradients(self, found: Tensor, leaves: list[Tensor], adapted: bool) -> list[Tensor]:
        wanted = leaves if adapted else leaves[:2]
        return [found.detach(), *torch.autograd.grad((found * self.upstream.to(found.dtype)).sum(), wanted)]


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("rank", [8, 3])
def test_grouped_products_give_what_each_expert_gives(adapted: bool, rank: int) -> None:
    layer = Layer(rank, seed=rank)
    for found, expected in zip(layer.grouped(adapted), layer.by_expert(adapted), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("first", "last"), [(0, 2), (2, 4), (4, 6)])
def test_a_part_of_the_experts_gives_its_part_of_the_sum(first: int, last: int) -> None:
    layer = Layer(8, seed=1)
    for found, expected in zip(layer.grouped(True, first, last), layer.by_expert(True, first, last), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_in_bfloat16_the_gradients_are_those_of_float32() -> None:
    worst: dict[int, list[float]] = {}
    for seed in range(10):
        rough, exact = Layer(8, seed, torch.bfloat16), Layer(8, seed)
        exact.gate_up, exact.down, exact.x = rough.gate_up.float(), rough.down.float(), rough.x.float()  # of the same rounded weights
        for place, (found, expected) in enumerate(zip(rough.grouped(True), exact.by_expert(True), strict=True)):
            found, expected = found.float().flatten(), expected.flatten()
            near = expected.abs() > 0.01 * expected.abs().max()
            worst.setdefault(place, []).append(float(((found - expected).abs() / expected.abs())[near].median()))
            assert float(torch.cosine_similarity(found, expected, dim=0)) >= 0.99
    assert all(max(errors) <= 0.03 for errors in worst.values()), worst


def test_an_adapter_far_smaller_than_the_last_digit_of_a_product_acts_whole_on_average() -> None:
    draw = torch.Generator().manual_seed(1)
    x, weight = torch.randn(64, 256, generator=draw).bfloat16(), torch.randn(1, 200, 256, generator=draw).bfloat16()
    a, b = torch.randn(1, 8, 256, generator=draw).bfloat16(), (1e-4 * torch.randn(1, 200, 8, generator=draw)).bfloat16()
    stack, offsets = GroupedStack(weight, 8), torch.tensor([64], dtype=torch.int32)
    with torch.no_grad():
        base, adapted = stack.times(x, offsets, None).double(), stack.times(x, offsets, (a, b)).double()
    lora = (x.double() @ a[0].double().T) @ b[0].double().T
    assert 0.8 < float(((adapted - base) * lora).sum() / (lora**2).sum()) < 1.2


def test_the_frozen_weight_is_kept_once_and_is_never_changed() -> None:
    weight = torch.randn(2, 16, 24)
    stack = GroupedStack(weight, 8)
    assert stack.weight_EOI.data_ptr() == stack._whole.data_ptr()
    x = torch.randn(5, 24)
    stack.times(x, torch.tensor([2, 5], dtype=torch.int32), (torch.randn(2, 8, 24), torch.randn(2, 16, 8)))
    torch.testing.assert_close(stack.weight_EOI, weight)
