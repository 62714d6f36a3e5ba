"""Activations that are computed again in the backward pass: the same gradients, much less kept."""

from pathlib import Path

import pytest
import torch
from test_training_step import ASKED, SETTINGS, says_e, trainer

from learner.kernels import output_head
from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.settings import LearnerSettings

ROOT = Path(__file__).parents[3]
ROWS = [Branches((1, 50, 900, 44), ((7, 8, 9), (300, 20))), Branches((1, 5), ((4000, 41, 17, 2), (6,)))]


def update(base: Path, recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
    """The adapter's gradients, and the bytes that the forward pass kept for them."""
    one, chance = Policy(base, LearnerSettings(dtype="float32", recompute_activations=recompute)), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in one.parameters.values():
            weight.copy_(torch.randn(weight.shape, generator=chance) * 0.1)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in one.causal_lm.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = one.stats(pack(ROWS, 2), 0.9).logprobs_BT.sum()
    activations = sum(size for place, size in kept.items() if place not in weights)
    loss.backward()
    return {name: weight.grad for name, weight in one.parameters.items() if weight.grad is not None}, activations


def test_what_is_computed_again_gives_the_same_gradients_and_is_not_kept(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_head, "HEAD_ROWS", 3)  # of 10 output tokens: the head takes four turns
    plain, kept = update(tiny_base, recompute=False)
    again, kept_less = update(tiny_base, recompute=True)
    assert plain.keys() == again.keys()
    for name in plain:
        assert float((again[name] - plain[name]).norm()) <= 1e-4 * float(plain[name].norm()), name  # the head sums a vocabulary in another order
    assert kept_less < kept / 5


def test_experts_that_are_replayed_are_replayed_in_what_is_computed_again_too(tiny_base: Path) -> None:
    adapters = []
    for recompute in (False, True):
        one = trainer(tiny_base, SETTINGS.model_copy(update={"replay_routing": True, "recompute_activations": recompute}))
        for weight in one.policy.parameters.values():
            torch.nn.init.constant_(weight, 0.01)
        one.step(ASKED, says_e)
        adapters.append({name: weight.grad for name, weight in one.policy.parameters.items()})
    plain, again = adapters
    assert any(bool(gradient.any()) for gradient in plain.values() if gradient is not None)
    for name, gradient in plain.items():
        assert float((again[name] - gradient).norm()) <= 1e-4 * float(gradient.norm()), name
