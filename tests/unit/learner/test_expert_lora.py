"""An adapter's factors in the precision of the tokens: kept while they are told to stand, never beyond."""

import pytest
import torch

from learner.kernels.expert_lora import Factors, FrozenStack


def test_what_is_cast_is_kept_only_while_asked_to() -> None:
    a, b = torch.randn(6, 5), torch.randn(4, 6)  # two experts of rank 3
    factors = Factors(a, b, 2.0, 2)
    factors.keep(True)
    first = factors.cast(torch.bfloat16)
    assert factors.cast(torch.bfloat16) is first
    factors.keep(False)
    b.data = 3 * b
    moved = factors.cast(torch.bfloat16)
    torch.testing.assert_close(moved[0][1].float(), 3 * first[0][1].float(), rtol=0.02, atol=0.02)


def test_the_factors_of_an_expert_are_those_of_its_part_of_the_whole_weight() -> None:
    a, b, x = torch.randn(6, 5), torch.randn(4, 6), torch.randn(7, 5)
    for expert, (a_RI, b_OR) in enumerate(Factors(a, b, 2.0, 2).cast(torch.float32)):
        whole_OI = 2.0 * b.view(4, 3, 2)[:, :, expert] @ a.view(2, 3, 5)[expert]
        torch.testing.assert_close((x @ a_RI.T) @ b_OR.T, x @ whole_OI.T)


def test_while_training_gradients_reach_the_weights() -> None:
    a, b = torch.randn(6, 5, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    sum(part.float().sum() for pair in Factors(a, b, 2.0, 2).cast(torch.bfloat16) for part in pair).backward()
    torch.testing.assert_close(a.grad, torch.ones(6, 5))
    torch.testing.assert_close(b.grad, torch.full((4, 6), 2.0))


@pytest.mark.parametrize("decoding", [False, True])
def test_an_adapter_far_smaller_than_the_last_digit_of_a_product_acts_whole_on_average(decoding: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, lora = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((60, 256), (1, 200, 256), (60, 200)))
    lora = 0.01 * lora
    stack = FrozenStack(weight, packs=decoding)
    with torch.set_grad_enabled(not decoding):
        base, adapted = stack.times(0, x).double(), stack.times(0, x, lora).double()

    def share(output: torch.Tensor) -> float:
        return float(((output - base) * lora.double()).sum() / (lora.double() ** 2).sum())

    assert 0.8 < share(adapted) < 1.2
    assert share((base.bfloat16() + lora).double()) < 0.5  # as PEFT adds it
