"""What is stored with an adapter tells it from all that a faulty replica could serve in its place."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from learner.models.float32_pass import Float32Pass
from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.rollouts.rollout_engines import Rollout
from learner.runs.adapter_probes import MOST_TIMES, probes_of
from learner.settings import LearnerSettings

ROLLOUTS = [Rollout(tuple(range(10 + p, 20 + p)), tuple(range(100 + n, 112 + n)), (0.0,) * 12, "cut", 0) for p in (0, 3) for n in range(6)]


def with_adapter(policy: Policy, size: float, seed: int = 1) -> Policy:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in policy.parameters.items():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * size)
    return policy


@pytest.fixture(scope="module")
def policy(tiny_base: Path) -> Policy:
    return Policy(tiny_base, LearnerSettings(dtype="float32"))


def said(policy: Policy, rollout: Rollout) -> list[float]:
    with torch.no_grad():
        stats = policy.stats(pack([Branches(rollout.prompt_ids, (rollout.output_ids,))], policy.eos_id))
    return stats.logprobs_BT[0].tolist()


def test_a_probe_holds_what_the_weights_say_with_and_without_each_group_and_as_they_were(policy: Policy) -> None:
    parent = {name: weight.detach().clone() for name, weight in with_adapter(policy, 0.03, seed=2).parameters.items()}
    before = said(policy, ROLLOUTS[0])
    with_adapter(policy, 0.05)
    (probe,) = probes_of(policy, ROLLOUTS[:1], 1, parent)["probes"]
    close = pytest.approx
    assert probe["adapter_logprobs"] == close(said(policy, ROLLOUTS[0]), abs=1e-5)
    assert probe["parent_logprobs"] == close(before, abs=1e-5)
    assert set(probe["without"]) == {"attention", "experts"}
    weights = {name: weight.detach().clone() for name, weight in policy.parameters.items()}
    for group, is_of_it in (("experts", lambda name: "experts" in name), ("attention", lambda name: "experts" not in name)):
        emptied = {name: torch.zeros_like(weight) if is_of_it(name) else weight for name, weight in weights.items()}
        with policy.as_it_was(emptied):
            assert probe["without"][group] == close(said(policy, ROLLOUTS[0]), abs=1e-5)
    with policy.reference():
        assert probe["base_logprobs"] == close(said(policy, ROLLOUTS[0]), abs=1e-5)
    assert probe["adapter_logprobs"] == close(said(policy, ROLLOUTS[0]), abs=1e-5)  # all is as it was
    assert all(weight.requires_grad for weight in policy.parameters.values())


def test_without_an_adapter_before_it_or_other_groups_nothing_is_said_of_them(tiny_base: Path) -> None:
    alone = with_adapter(Policy(tiny_base, LearnerSettings(dtype="float32", expert_targets=())), 0.05)
    (probe,) = probes_of(alone, ROLLOUTS[:1], 1, None)["probes"]
    assert probe["without"] == {}
    assert "parent_logprobs" not in probe


@pytest.mark.parametrize(("size", "count"), [(0.05, 2), (1e-4, 2 * MOST_TIMES)])
def test_an_adapter_near_its_base_has_more_probes(policy: Policy, size: float, count: int) -> None:
    probes = probes_of(with_adapter(policy, size), ROLLOUTS, 2, None)["probes"]
    assert len(probes) == count
    asked = {(tuple(probe["prompt_ids"]), tuple(probe["output_ids"])) for probe in probes}
    assert asked == {(rollout.prompt_ids, rollout.output_ids) for rollout in ROLLOUTS[:count]}


def test_answers_without_a_token_are_no_probes(policy: Policy) -> None:
    empty = Rollout((1, 2), (), (), "cut", 0)
    assert len(probes_of(with_adapter(policy, 0.05), [empty, *ROLLOUTS], 2, None)["probes"]) == 2


def test_the_norm_of_every_exported_tensor_is_stored(policy: Policy) -> None:
    norms = probes_of(with_adapter(policy, 0.05), ROLLOUTS, 2, None)["tensors"]
    assert norms == {name: pytest.approx(float(weight.norm())) for name, weight in policy.adapter().items()}
    assert all(norms.values())


def test_a_learner_in_bfloat16_computes_its_probes_in_float32(tiny_base: Path, policy: Policy) -> None:
    low = Policy(tiny_base, LearnerSettings(dtype="bfloat16"))
    with_adapter(policy, 0.05)
    with torch.no_grad():
        for name, weight in low.parameters.items():
            weight.copy_(policy.parameters[name])
    packed = pack([Branches(rollout.prompt_ids, (rollout.output_ids,)) for rollout in ROLLOUTS], policy.eos_id)

    def steps(one: Policy) -> Tensor:
        with torch.no_grad():
            adapter_BT = one.stats(packed).logprobs_BT
            with one.reference():
                return adapter_BT - one.stats(packed).logprobs_BT

    expected_BT = steps(policy)
    assert (steps(low) - expected_BT).abs().max() > 0.01  # what bfloat16 makes of it
    with Float32Pass():
        assert (steps(low) - expected_BT).abs().max() < 1e-4
    assert next(low.causal_lm.parameters()).dtype == torch.bfloat16
