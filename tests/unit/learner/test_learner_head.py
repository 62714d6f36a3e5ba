"""Log-probability, entropy and their gradient are those of the plain arithmetic."""

import torch

from learner.models.output_head import TokenScores


def test_scores_and_gradient_are_those_of_log_softmax() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden_KH = torch.randn(5, 7, generator=draw, dtype=torch.float64, requires_grad=True)
    weight_VH, bias_V = torch.randn(11, 7, generator=draw, dtype=torch.float64) * 2, torch.randn(11, generator=draw, dtype=torch.float64)
    target_K, upstream_K = torch.tensor([0, 10, 3, 3, 7]), torch.tensor([1.0, -0.5, 0.0, 2.0, 0.25])

    plain_KV = torch.log_softmax((hidden_KH @ weight_VH.T + bias_V) / 0.7, dim=-1)
    expected_K = plain_KV.gather(-1, target_K[:, None])[:, 0]
    (expected_KH,) = torch.autograd.grad((expected_K * upstream_K).sum(), hidden_KH)
    found_K, entropy_K = TokenScores.apply(hidden_KH, weight_VH, bias_V, target_K, 0.7)
    (found_KH,) = torch.autograd.grad((found_K * upstream_K).sum(), hidden_KH)

    torch.testing.assert_close(found_K.double(), expected_K.detach(), atol=1e-5, rtol=1e-5)  # in float32, whatever comes in
    torch.testing.assert_close(entropy_K.double(), -(plain_KV.exp() * plain_KV).sum(-1).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_KH, expected_KH, atol=1e-5, rtol=1e-5)
    assert not entropy_K.requires_grad
