"""Log-probability, entropy and their gradient are those of the plain arithmetic."""

import torch
from torch.nn.functional import linear, one_hot

from learner.kernels.output_head import TokenScores


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


def test_the_gradient_is_right_in_the_precision_that_is_trained_in_for_confident_tokens_too() -> None:
    """Over 20 draws: hidden states that point at their target more and more, so that its probability goes from a half to 1 - 1e-6."""
    confident = 0
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        weight_VH = torch.randn(200, 64, generator=draw).bfloat16()
        target_K = torch.randint(200, (64,), generator=draw)
        hidden_KH = (weight_VH.float()[target_K] * torch.linspace(0.05, 0.5, 64)[:, None] + 0.1 * torch.randn(64, 64, generator=draw)).bfloat16()
        leaf_KH = hidden_KH.detach().requires_grad_()
        found_K, _ = TokenScores.apply(leaf_KH, weight_VH, None, target_K, 1.0)
        (found_KH,) = torch.autograd.grad(found_K.sum(), leaf_KH)
        plain_KV = torch.log_softmax(linear(hidden_KH, weight_VH).double(), dim=-1)  # of the same rounded logits, then exactly
        exact_K = plain_KV.gather(-1, target_K[:, None])[:, 0]
        exact_KH = (one_hot(target_K, 200).double() - plain_KV.exp()) @ weight_VH.double()
        torch.testing.assert_close(found_K.double(), exact_K, atol=1e-12, rtol=1e-5)
        sure_K = exact_K > torch.tensor(0.998).log()
        confident += int(sure_K.sum())
        errors_K = (found_KH.double() - exact_KH).norm(dim=1) / exact_KH.norm(dim=1)
        cosines_K = torch.cosine_similarity(found_KH.double(), exact_KH, dim=1)
        for which_K in (sure_K, ~sure_K):
            assert errors_K[which_K].median() <= 0.03, (seed, errors_K[which_K].median())
            assert cosines_K[which_K].median() >= 0.99, (seed, cosines_K[which_K].median())
    assert confident > 200
