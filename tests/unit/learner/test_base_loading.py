"""A base is compared with what transformers computes of it before anything is trained, and refused or left to transformers where it differs."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DeepseekV3Config, Gemma2Config, MixtralConfig, Qwen2MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from learner.models import base_loading
from learner.models.base_loading import check_forward, computes_the_same, load_base
from learner.models.float32_pass import Float32Pass
from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.settings import LearnerSettings
from reward.families.known_families import FAMILIES
from streams.core.errors import ConfigError
from tests.support.tiny_models import CONFIGS, SHAPE, tiny_model

FLOAT32 = LearnerSettings(dtype="float32")
ROWS = (Branches((1, 50, 900, 44, 7, 3000), ((3, 4, 5, 9, 2000, 6, 7), (8, 11), (9, 10, 11, 2))), Branches((1, 7), ((3, 4, 5, 6, 7), (60, 2))))


def alone(model: Any, rows: tuple[Branches, ...]) -> torch.Tensor:
    """The states that predict each output token, from a pass of its own over prompt and output."""
    found = []
    for row in rows:
        for output in row.outputs:
            states_TH = model.model(input_ids=torch.tensor([row.prompt_ids + output]), use_cache=False).last_hidden_state[0]
            found.append(states_TH[len(row.prompt_ids) - 1 : -1])
    return torch.cat(found)


def test_there_is_a_tiny_model_of_every_family() -> None:
    assert {family.model_types[0] for family in FAMILIES} == set(CONFIGS)
    assert len({kind for family in FAMILIES for kind in family.model_types}) == sum(len(family.model_types) for family in FAMILIES)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_packed_rows_are_computed_as_transformers_computes_each_sequence_alone(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    loaded = load_base(tiny_model(kind, tmp_path, tiny_base), FLOAT32)
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = alone(theirs, ROWS)
        for rows in (ROWS, (Branches(ROWS[0].prompt_ids, ROWS[0].outputs[:1]),)):  # with a layout for outputs apart, and with the mask alone
            found = base_loading.packed_states(loaded.model, pack(rows, 2))
            assert float((found - expected[: len(found)]).abs().max()) < 1e-4
    assert loaded.family is not None
    assert bool(loaded.factored) == (loaded.family.experts is not None and loaded.family.experts.plain)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mixtral", {"sliding_window": 3}),
        ("mistral", {"sliding_window": 3}),
        ("qwen3_moe", {"sliding_window": 3, "use_sliding_window": True}),
        ("qwen2", {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 1}),
        ("gpt_oss", {"sliding_window": 3}),
    ],
)
def test_a_packed_row_does_not_pass_a_sliding_window_by(kind: str, changes: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    model = load_base(tiny_model(kind, tmp_path, tiny_base, **changes), FLOAT32).model
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = alone(theirs, ROWS)
        for rows in (ROWS, (Branches(ROWS[0].prompt_ids, ROWS[0].outputs[:1]),)):
            found = base_loading.packed_states(model, pack(rows, 2))
            assert float((found - expected[: len(found)]).abs().max()) < 1e-4
        model.config.sliding_window = None  # as if nobody had looked: the rows are long enough to tell
        theirs.config.sliding_window = 100
        assert float((base_loading.packed_states(model, pack(ROWS, 2)) - expected).abs().max()) > 1e-2


def test_experts_that_compute_something_else_are_left_to_transformers() -> None:
    config = MixtralConfig(**SHAPE, num_local_experts=4)
    plain = MixtralExperts(config)
    for weight in plain.parameters():
        nn.init.normal_(weight, std=0.2)
    assert computes_the_same(plain)

    class Interleaved(MixtralExperts):
        def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
            return self.act_fn(gate_up[..., ::2]) * gate_up[..., 1::2]

        def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            total = torch.zeros_like(x)
            for k in range(chosen.shape[1]):
                gate_up = torch.einsum("toh,th->to", self.gate_up_proj[chosen[:, k]], x)
                total += weights[:, k, None] * torch.einsum("tho,to->th", self.down_proj[chosen[:, k]], self._apply_gate(gate_up))
            return total

    class Clamped(Interleaved):
        def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
            gate, up = gate_up.chunk(2, dim=-1)
            return self.act_fn(gate.clamp(max=7.0)) * up.clamp(-7.0, 7.0)

    for other in (Interleaved, Clamped):
        odd = other(config)
        odd.load_state_dict(plain.state_dict())
        assert not computes_the_same(odd)
    assert not computes_the_same(GptOssExperts(CONFIGS["gpt_oss"][0](**(SHAPE | CONFIGS["gpt_oss"][1]))))


def test_a_forward_pass_that_differs_is_refused(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_base(tiny_model("llama", tmp_path, tiny_base), FLOAT32)
    check_forward(loaded.model, loaded.facts)
    right = base_loading.packed_states
    monkeypatch.setattr(base_loading, "packed_states", lambda model, packed: right(model, packed) * 1.01)
    with pytest.raises(ConfigError, match=r"a llama computes something else in the learner than in transformers.*Mixtral, Qwen3-MoE"):
        check_forward(loaded.model, loaded.facts)


def test_an_unknown_mixture_is_compared_and_carries_an_adapter_on_attention_alone(tiny_base: Path, tmp_path: Path) -> None:
    config = Qwen2MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=48)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for file in tiny_base.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    policy = Policy(tmp_path, FLOAT32)
    assert policy.targets == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert all(".self_attn." in name for name in policy.parameters)


def test_an_unknown_architecture_that_the_learner_does_not_compute_is_refused_by_name(tiny_base: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(Gemma2Config(**SHAPE, head_dim=32)).save_pretrained(tmp_path)
    for file in tiny_base.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="softcap, which the learner does not compute"):
        Policy(tmp_path, FLOAT32)


def test_a_model_type_that_transformers_does_not_know_is_refused_with_the_families(tiny_base: Path, tmp_path: Path) -> None:
    tiny_model("llama", tmp_path, tiny_base)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llamba"}))
    with pytest.raises(ConfigError, match=r"cannot load it as a language model.*known families are Mixtral, Qwen3-MoE, OLMoE"):
        load_base(tmp_path, FLOAT32)


def test_kimi_k2_goes_by_deepseeks_architecture(tiny_base: Path, tmp_path: Path) -> None:
    tiny_model("deepseek_v3", tmp_path, tiny_base)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "kimi_k2"}))
    assert isinstance(load_base(tmp_path, FLOAT32).model.config, DeepseekV3Config)


@pytest.mark.parametrize("kind", ["gpt_oss", "qwen3_moe"])
def test_a_float32_pass_through_a_bfloat16_base_rounds_nothing_of_its_experts_either(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(str(tiny_model(kind, tmp_path, tiny_base)))
    whole.to(torch.bfloat16).save_pretrained(tmp_path)  # so that both policies have the same weights
    policies = [Policy(tmp_path, LearnerSettings(dtype=dtype)) for dtype in ("float32", "bfloat16")]  # type: ignore[arg-type]
    for policy in policies:
        chance = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, weight in sorted(policy.parameters.items()):
                weight.copy_(torch.randn(weight.shape, generator=chance) * 0.1)
    packed = pack(ROWS, 2)
    as_bases = [nullcontext() if kind == "qwen3_moe" else policy.reference() for policy in policies]
    with torch.no_grad():
        with as_bases[0]:
            expected = policies[0].stats(packed).logprobs_BT
        with as_bases[1], Float32Pass():
            found = policies[1].stats(packed).logprobs_BT
    assert float((found - expected).abs().max()) < 1e-3


def test_an_adapter_that_peft_would_round_away_with_the_experts_weights_is_left_out(tiny_base: Path, tmp_path: Path) -> None:
    tiny_model("gpt_oss", tmp_path, tiny_base)
    assert "mlp.experts.down_proj" in Policy(tmp_path, FLOAT32).targets
    assert "mlp.experts.down_proj" not in Policy(tmp_path, LearnerSettings(dtype="bfloat16")).targets
    assert "mlp.experts.down_proj" in Policy(tmp_path, LearnerSettings(dtype="bfloat16", expert_targets=("gate_up_proj", "down_proj"))).targets
