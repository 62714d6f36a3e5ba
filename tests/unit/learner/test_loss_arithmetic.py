"""Advantages, losses and corrections against values worked out by hand."""

import itertools
import math

import pytest
import torch

from learner.models.value_head import ValueHead
from learner.objectives import advantages, losses
from learner.objectives import importance_weights as corrections
from learner.rollouts.rollout_engines import seed_of

ALL_THERE = torch.ones(2, 3, dtype=torch.bool)


def test_grpo_divides_the_distance_from_the_mean_by_the_samples_standard_deviation() -> None:
    found = advantages.grpo(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.2, 0.4, 0.6, 0.8]]))
    # row 1: mean 0.5, std sqrt(4 * 0.25 / 3) = 0.57735; row 2: mean 0.5, std sqrt((0.09 + 0.01 + 0.01 + 0.09) / 3) = 0.25820
    assert found[0].tolist() == pytest.approx([0.86602, -0.86602, -0.86602, 0.86602], abs=1e-4)
    assert found[1].tolist() == pytest.approx([-1.16189, -0.38730, 0.38730, 1.16189], abs=1e-4)


def test_a_group_of_equal_rewards_teaches_nothing() -> None:
    rewards = torch.full((2, 4), 0.7)
    for advantage in advantages.BY_NAME.values():
        assert advantage(rewards).abs().max() < 1e-6


@pytest.mark.parametrize("advantage", sorted(advantages.BY_NAME))
@pytest.mark.parametrize("size", range(2, 17))
def test_equal_rewards_are_exactly_nothing_for_every_size_of_group_and_every_value(advantage: str, size: int) -> None:
    rewards_PG = torch.arange(1, 1000).div(1000)[:, None].expand(-1, size)
    assert advantages.BY_NAME[advantage](rewards_PG).abs().max() == 0


def test_dr_grpo_keeps_the_distance_from_the_mean_as_it_is() -> None:
    assert advantages.dr_grpo(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).tolist() == [[0.75, -0.25, -0.25, -0.25]]


def test_rloo_sets_a_reward_against_the_mean_of_the_others() -> None:
    # 1 - mean(0, 0.5, 0) = 0.8333; 0 - mean(1, 0.5, 0) = -0.5; 0.5 - mean(1, 0, 0) = 0.1667
    assert advantages.rloo(torch.tensor([[1.0, 0.0, 0.5, 0.0]]))[0].tolist() == pytest.approx([0.83333, -0.5, 0.16667, -0.5], abs=1e-4)


def test_the_surrogate_is_clipped_above_for_good_tokens_and_below_for_bad_ones() -> None:
    old = torch.zeros(2, 3)
    policy = torch.log(torch.tensor([[1.1, 1.5, 0.5], [1.1, 1.5, 0.5]]))
    found = losses.clipped_surrogate(policy, old, ALL_THERE, torch.tensor([[2.0], [-1.0]]), clip_low=0.2, clip_high=0.28)
    # advantage 2: 1.1*2; min(1.5, 1.28)*2; min(0.5, 0.8)*2. advantage -1: -1.1; min(-1.5, -1.28); min(-0.5, -0.8)
    assert found.flatten().tolist() == pytest.approx([2.2, 2.56, 1.0, -1.1, -1.5, -0.8])


def test_a_clipped_token_has_no_gradient_and_the_first_update_has_the_policy_gradients() -> None:
    policy = torch.log(torch.tensor([[1.0, 1.5]])).requires_grad_()
    losses.clipped_surrogate(policy, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[3.0]]), 0.2, 0.28).sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [[3.0, 0.0]]  # ratio 1: advantage * d log p; ratio 1.5 > 1.28: nothing


def test_k3_is_zero_where_the_two_agree_and_never_negative() -> None:
    policy, reference = torch.tensor([[-1.0, -2.0, -0.5]]), torch.tensor([[-1.0, -1.0, -2.0]])
    # e^1 - 1 - 1 = 0.71828; e^-1.5 - 1 + 1.5 = 0.72313
    assert losses.k3_kl(policy, reference)[0].tolist() == pytest.approx([0.0, 0.71828, 0.72313], abs=1e-4)


def test_k3_averages_to_the_kl_divergence_over_tokens_the_policy_samples() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    expected = float((p * (p / q).log()).sum())
    assert float((p * losses.k3_kl(p.log(), q.log())).sum()) == pytest.approx(expected, abs=1e-6)


def test_the_kls_weight_follows_its_target_by_a_fifth_at_most_and_stays_in_bounds() -> None:
    assert losses.steered(0.1, kl_nats=0.3, target_nats=0.1, first=0.1) == pytest.approx(0.12)  # far above: + 20 %
    assert losses.steered(0.1, kl_nats=0.05, target_nats=0.1, first=0.1) == pytest.approx(0.09)  # half: - 10 %
    assert losses.steered(0.1, kl_nats=0.0, target_nats=0.1, first=0.1) == pytest.approx(0.08)
    assert losses.steered(9.9, kl_nats=9.0, target_nats=0.1, first=0.1) == pytest.approx(10.0)
    assert losses.steered(0.0011, kl_nats=0.0, target_nats=0.1, first=0.1) == pytest.approx(0.001)


def test_padding_adds_nothing_to_a_sum_even_when_it_is_not_a_number() -> None:
    values = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    assert float(losses.masked_sum(values, torch.tensor([[True, False], [True, True]]))) == 6.0


def test_importance_weights_are_truncated_above_only_and_vanish_on_padding() -> None:
    trainer, behaviour = torch.log(torch.tensor([[0.9, 0.1, 0.4, 0.3]])), torch.log(torch.tensor([[0.3, 0.2, 0.4, 0.1]]))
    mask = torch.tensor([[True, True, True, False]])
    assert corrections.token_weights(trainer, behaviour, mask, cap=2.0)[0].tolist() == pytest.approx([2.0, 0.5, 1.0, 0.0])
    assert corrections.engine_ratio(trainer, behaviour, mask)[0].tolist() == pytest.approx([3.0, 0.5, 1.0, 0.0])


def test_no_gradient_flows_through_the_importance_weights() -> None:
    trainer = torch.zeros(1, 2, requires_grad=True)
    assert not corrections.token_weights(trainer, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), 2.0).requires_grad


def test_tokens_out_of_range_are_masked() -> None:
    ratio = torch.tensor([[0.1, 0.5, 1.0, 2.0, 9.0]])
    mask = torch.tensor([[True, True, False, True, True]])
    assert corrections.in_range(ratio, mask, 0.5, 2.0).tolist() == [[False, True, False, True, False]]


def test_the_effective_sample_is_all_of_it_on_policy_and_one_token_when_one_carries_all() -> None:
    mask = torch.tensor([[True, True, True, True, False]])
    assert corrections.effective_sample_ratio(torch.tensor([[1.0, 1.0, 1.0, 1.0, 7.0]]), mask) == 1.0
    assert corrections.effective_sample_ratio(torch.tensor([[5.0, 0.0, 0.0, 0.0, 7.0]]), mask) == 0.25
    # (1 + 2 + 3)^2 / (4 * (1 + 4 + 9)) = 36 / 56
    assert corrections.effective_sample_ratio(torch.tensor([[1.0, 2.0, 3.0, 0.0, 7.0]]), mask) == pytest.approx(36 / 56)
    assert math.isclose(corrections.effective_sample_ratio(torch.zeros(1, 5), mask), 0.0)


def test_reinforce_pp_divides_by_the_spread_of_the_whole_step() -> None:
    # centred: +-0.5 and +-0.1; sum of squares 2 * 0.25 + 2 * 0.01 = 0.52; std sqrt(0.52 / 3) = 0.41633
    found = advantages.reinforce_pp(torch.tensor([[1.0, 0.0], [0.6, 0.4]]))
    assert found.flatten().tolist() == pytest.approx([1.20096, -1.20096, 0.24019, -0.24019], abs=1e-4)


def test_the_most_telling_of_a_group_are_its_best_and_its_worst_and_no_subset_varies_more() -> None:
    rewards = torch.tensor([[0.1, 0.9, 0.5, 0.2, 0.8], [1.0, 1.0, 1.0, 1.0, 0.0]])
    assert advantages.most_telling(rewards, 4).tolist() == [[0, 1, 3, 4], [0, 1, 3, 4]]
    assert advantages.most_telling(rewards, 3).tolist() == [[0, 1, 4], [0, 1, 4]]
    for kept in (2, 3, 4):
        for row, chosen in zip(rewards, advantages.most_telling(rewards, kept), strict=True):
            most = max(float(row[list(some)].var()) for some in itertools.combinations(range(5), kept))
            assert float(row[chosen].var()) == pytest.approx(most)


def test_gspo_has_one_ratio_a_sequence_the_geometric_mean_of_its_tokens() -> None:
    policy = torch.log(torch.tensor([[2.0, 0.5, 8.0], [4.0, 1.0, 99.0]]))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    # (2 * 0.5 * 8)^(1/3) = 2, clipped at 1.5 for a good sequence; (4 * 1)^(1/2) = 2, not clipped for a bad one
    found = losses.gspo(policy, torch.zeros(2, 3), mask, torch.tensor([[1.0], [-1.0]]), 0.5, 0.5)
    assert found[0].tolist() == pytest.approx([1.5] * 3)
    assert found[1].tolist() == pytest.approx([-2.0] * 3)


def test_under_cispo_a_clipped_token_still_teaches_at_the_clips_weight() -> None:
    policy = torch.log(torch.tensor([[1.5, 1.0]])).requires_grad_()
    losses.cispo(policy, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[3.0]]), 0.2, 0.28).sum().backward()
    assert policy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx([1.28 * 3, 3.0])


def test_at_the_first_update_every_surrogate_has_the_policy_gradient() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    for surrogate in losses.SURROGATES.values():
        policy = torch.full((2, 3), -1.0, requires_grad=True)
        losses.masked_sum(surrogate(policy, policy.detach(), mask, torch.tensor([[2.0], [-1.0]]), 0.2, 0.2), mask).backward()
        assert policy.grad is not None
        assert policy.grad.tolist() == [[2.0, 2.0, 2.0], [-1.0, 0.0, 0.0]]


def test_a_sequences_weight_is_the_truncated_product_of_its_tokens_ratios() -> None:
    trainer = torch.log(torch.tensor([[2.0, 0.25, 9.0], [2.0, 3.0, 1.0]]))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    found = corrections.sequence_weights(trainer, torch.zeros(2, 3), mask, cap=4.0)
    assert found.flatten().tolist() == pytest.approx([0.5, 0.5, 0.0, 4.0, 4.0, 4.0])


def test_kto_weighs_an_answers_gain_over_the_reference_point_by_its_thumb() -> None:
    policy, reference = torch.tensor([-4.0, -4.0, -6.0]), torch.tensor([-6.0, -6.0, -6.0])
    found = losses.kto(policy, reference, torch.tensor([True, False, True]), kl=1.0, beta=0.5, bad_weight=2.0)
    # gains 0.5 * (2 - 1) = 0.5, 0.5, -0.5: 1 - s(0.5) = 0.37754; 2 * (1 - s(-0.5)) = 1.24492; 1 - s(-0.5) = 0.62246
    assert found.tolist() == pytest.approx([0.37754, 1.24492, 0.62246], abs=1e-4)


def test_a_teachers_divergence_is_taken_over_the_whole_vocabulary_and_pulls_the_student_towards_it() -> None:
    teacher = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]]))
    logits = torch.log(torch.tensor([[0.25, 0.25, 0.5], [0.2, 0.3, 0.5]])).requires_grad_()
    found = losses.distillation_kl(teacher, torch.log_softmax(logits, -1))
    # 0.5 ln 2 + 0 + 0.25 ln(1/2) = 0.17329; equal distributions: 0
    assert found.tolist() == pytest.approx([0.17329, 0.0], abs=1e-4)
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-0.25, 0.0, 0.25])  # student - teacher
    assert logits.grad[1].abs().max() < 1e-6


def test_gae_looks_ahead_as_far_as_its_decay_says() -> None:
    values = torch.tensor([[0.5, 0.2, 0.6, 9.0], [0.1, 0.4, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    found, returns = advantages.gae(torch.tensor([1.0, 0.0]), values, mask, decay=0.5)
    # row 1, deltas: 0.2 - 0.5 = -0.3; 0.6 - 0.2 = 0.4; 1 - 0.6 = 0.4. A3 = 0.4; A2 = 0.4 + 0.2 = 0.6; A1 = -0.3 + 0.3 = 0
    # row 2, deltas: 0.4 - 0.1 = 0.3; 0 - 0.4 = -0.4. A2 = -0.4; A1 = 0.3 - 0.2 = 0.1
    assert found.flatten().tolist() == pytest.approx([0.0, 0.6, 0.4, 0.0, 0.1, -0.4, 0.0, 0.0])
    assert returns.flatten().tolist() == pytest.approx([0.5, 0.8, 1.0, 0.0, 0.2, 0.0, 0.0, 0.0])
    whole, _ = advantages.gae(torch.tensor([1.0, 0.0]), values, mask, decay=1.0)  # reward less value, at every token
    assert whole.flatten().tolist() == pytest.approx([0.5, 0.8, 0.4, 0.0, -0.1, -0.4, 0.0, 0.0])


def test_a_value_head_says_the_mean_at_first_and_goes_on_after_a_restart() -> None:
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 16, generator=chance) * 30
    returns = (hidden[:, 0] > 0).float()
    head = ValueHead(16, learning_rate=0.05)
    head.begin(0.3)
    assert head.values(hidden).tolist() == pytest.approx([0.3] * 200)
    assert head.fit(hidden, returns, updates=8) == pytest.approx(float(((0.3 - returns) ** 2).mean()), abs=1e-5)
    again = ValueHead(16, learning_rate=0.05)
    again.restore(head.tensors())
    again.begin(0.9)  # it has learned something: not a beginner
    for one in (head, again):
        one.fit(hidden, returns, updates=8)
    assert torch.equal(head.values(hidden), again.values(hidden))


def test_no_two_samples_share_a_random_stream_though_an_engine_adds_the_samples_number_to_a_seed() -> None:
    streams = [seed_of(seed, prompt) + sample for seed in range(200, 260) for prompt in range(16) for sample in range(8)]
    assert len(set(streams)) == len(streams)
    assert all(0 <= stream < 2**63 for stream in streams)
