"""The policy on each family: a random tiny model is loaded, computes what transformers computes, is trained, saved and read back by plain PEFT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from learner.models.lora_policy import Policy, names_as_they_are
from learner.objectives.rollout_objective import RolloutObjective
from learner.rollouts.rollout_engines import Rollout, TransformersEngine
from learner.runs.trainer import Trainer
from learner.settings import LearnerSettings
from streams.core.errors import ConfigError
from streams.core.events import Message
from tests.support.processors import Claim
from tests.support.tiny_models import CONFIGS, tiny_model

SETTINGS = {"dtype": "float32", "max_output_tokens": 8, "samples_per_prompt": 4, "learning_rate": 0.02, "kl_coefficient": 0.0}
ASKED = [(Message(role="user", content="What is tea?"),), (Message(role="user", content="Why do whales sing?"),)]


SHARED_TOO = {"shared_targets": ("gate_proj", "up_proj", "down_proj")}
MIXTURES = ("deepseek_v3", "gpt_oss", "mixtral", "olmoe", "qwen3_moe")


@pytest.fixture
def shaped(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> tuple[Path, LearnerSettings]:
    kind = request.param
    return tiny_model(kind, tmp_path / "base", tiny_base, initializer_range=0.02), LearnerSettings(
        **SETTINGS, **(SHARED_TOO if kind == "deepseek_v3" else {})
    )


@pytest.mark.parametrize("shaped", sorted(CONFIGS), indirect=True)
def test_every_target_is_trained_and_the_adapter_is_what_plain_peft_reads_back(shaped: tuple[Path, LearnerSettings], tmp_path: Path) -> None:
    base, settings = shaped
    policy = Policy(base, settings)
    trainer = Trainer(policy, TransformersEngine(policy), settings)
    before = {name: weight.clone() for name, weight in policy.parameters.items()}
    for _ in range(2):  # in the first step only the factors that begin at zero move
        metrics = trainer.step(ASKED, lambda pairs: [float(len(answer) % 5) for _, answer in pairs]).metrics
    assert metrics["engine_ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    still = [name for name, weight in policy.parameters.items() if torch.equal(weight, before[name])]
    assert still == []
    for target in policy.targets:
        put = (".experts.",) if ".experts." in target else (f".{target}.lora_A", f".{target}.lora_B")
        assert any(part in name for name in before for part in put), target

    policy.save_adapter(tmp_path / "adapter")
    with names_as_they_are():
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32), str(tmp_path / "adapter")).eval()
    ids = torch.tensor([[1, 100, 2000, 30000, 5, 77]])
    with torch.no_grad():
        ours, theirs = (torch.log_softmax(model(ids).logits.float(), -1) for model in (policy.causal_lm, plain))
        with policy.reference():
            reference = torch.log_softmax(policy.causal_lm(ids).logits.float(), -1)
    assert float((ours - theirs).abs().max()) < 1e-4
    assert float((ours - reference).abs().max()) > 1e-3


def test_a_shared_target_that_matches_nothing_is_an_error(tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match=r"shared_targets names gate_proj, which this base \(mixtral\) does not have"):
        Policy(tiny_base, LearnerSettings(shared_targets=("gate_proj",)))


def test_targets_on_which_vllm_would_not_serve_an_adapter_whole_are_named(tiny_base: Path, tmp_path: Path) -> None:
    latent = Policy(tiny_model("deepseek_v3", tmp_path / "a", tiny_base), LearnerSettings(**SETTINGS, attention_targets=("o_proj", "kv_b_proj")))
    assert "learner.attention_targets names kv_b_proj: vLLM folds its weight" in (latent.lora_targets.unserved(latent.family) or "")
    half = Policy(tiny_model("olmoe", tmp_path / "b", tiny_base), LearnerSettings(**SETTINGS, expert_targets=("down_proj",)))
    assert "vLLM needs both (gate_up_proj, down_proj) or none" in (half.lora_targets.unserved(half.family) or "")
    assert "kv_b_proj" not in Policy(tmp_path / "a", LearnerSettings(**SETTINGS)).targets


@pytest.mark.learning
@pytest.mark.parametrize("shaped", ["deepseek_v3", "olmoe", "qwen3_moe"], indirect=True)
def test_experts_that_the_engine_chose_are_replayed_so_that_a_router_that_flips_does_not_look_like_a_new_policy(
    shaped: tuple[Path, LearnerSettings], seed: int, claim: Claim
) -> None:
    """The engine's routers are bent by noise, as other kernels would; replay takes its choices, though not its weights. Tried as in
    test_learning_claims.py, in float32."""

    class Bent(TransformersEngine):
        def sample(self, *arguments: Any) -> list[Rollout]:
            gates = [module for name, module in self._policy.causal_lm.named_modules() if name.endswith(".mlp.gate")]
            straight = [gate.weight.detach().clone() for gate in gates]
            chance = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for gate in gates:
                    gate.weight += 0.01 * torch.randn(gate.weight.shape, generator=chance)
            found = super().sample(*arguments)
            with torch.no_grad():
                for gate, weight in zip(gates, straight, strict=True):
                    gate.weight.copy_(weight)
            return found

    base, settings = shaped
    gaps = {}
    for replay in (False, True):
        policy = Policy(base, settings.model_copy(update={"replay_routing": replay}))
        with torch.no_grad():  # experts whose choice is felt
            for name, weight in policy.causal_lm.named_parameters():
                if ".experts." in name and "lora" not in name:
                    weight.mul_(20)
        engine = Bent(policy)
        trainer = Trainer(policy, engine, policy_settings := settings.model_copy(update={"replay_routing": replay}))
        rollouts = engine.sample([policy.prompt_ids(prompt) for prompt in ASKED], 4, 8, 1.0, seed)
        objective = RolloutObjective(policy, policy_settings, 0, 0.0, rollouts, torch.rand(2, 4))
        objective.backward()
        gaps[replay] = sum(
            abs(one.old_BT - one.behaviour_BT)[one.packed.mask_BT].mean().item() for one in objective._passes if one.old_BT is not None
        )
        straight = TransformersEngine(policy)
        trainer.engine = straight
        assert trainer.step(ASKED, lambda pairs: [0.5] * len(pairs)).metrics["engine_ratio_max"] == pytest.approx(1.0, abs=1e-3)
    claim("nats between trainer and an engine whose routers flip", gaps[False], 1e-3)
    claim("how many times nearer replayed experts bring them", gaps[False] / gaps[True], 3.0)
