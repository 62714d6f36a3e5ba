"""The policy on the mixtures of experts in the field: a random tiny model of each is trained, saved and read back by plain PEFT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3Config, OlmoeConfig, PreTrainedConfig, Qwen3MoeConfig

from learner.models.lora_policy import Policy
from learner.objectives.rollout_objective import RolloutObjective
from learner.rollouts.rollout_engines import Rollout, TransformersEngine
from learner.runs.trainer import Trainer
from learner.settings import LearnerSettings
from streams.core.errors import ConfigError
from streams.core.events import Message
from tests.support.processors import Claim

SHAPE: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "num_experts_per_tok": 2,
}  # fmt: skip
LATENT: dict[str, Any] = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
SHAPES: dict[str, tuple[PreTrainedConfig, dict[str, Any]]] = {
    "qwen3-moe": (Qwen3MoeConfig(**SHAPE, head_dim=16, moe_intermediate_size=48, num_experts=4), {}),
    "olmoe": (OlmoeConfig(**SHAPE, num_experts=4), {}),
    "deepseek-v3": (
        DeepseekV3Config(
            **{**SHAPE, **LATENT, "num_key_value_heads": 4}, moe_intermediate_size=48, n_routed_experts=4, n_shared_experts=1, n_group=1,
            topk_group=1, first_k_dense_replace=1,
        ),
        {
            "attention_targets": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
            "shared_targets": ("gate_proj", "up_proj", "down_proj"),
        },
    ),
}  # fmt: skip
SETTINGS = {"dtype": "float32", "max_output_tokens": 8, "samples_per_prompt": 4, "learning_rate": 0.02, "kl_coefficient": 0.0}
ASKED = [(Message(role="user", content="What is tea?"),), (Message(role="user", content="Why do whales sing?"),)]


@pytest.fixture(params=sorted(SHAPES))
def shaped(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> tuple[Path, LearnerSettings]:
    config, targets = SHAPES[request.param]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(str(tiny_base)).save_pretrained(tmp_path / "base")
    return tmp_path / "base", LearnerSettings(**SETTINGS, **targets)


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
        assert any(f".{target.rpartition('.')[2]}" in name or ".experts." in name for name in before), target

    policy.save_adapter(tmp_path / "adapter")
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


@pytest.mark.learning
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
