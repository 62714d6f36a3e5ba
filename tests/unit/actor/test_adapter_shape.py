"""Adapters from elsewhere: taken where they can be served and attested, or refused in one sentence that names the field and says what to do."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from actor.adapters.adapter_shape import check_shape
from reward.families.known_families import family_of
from reward.families.model_family import ModelFamily
from streams.core.errors import BadArtifact
from streams.core.events import AdapterVersion, Artifact

PREFIX = "base_model.model.model.layers.0."
ATTENTION = ("self_attn.q_proj",)
EXPERTS = ("mlp.experts", "mlp.experts.base_layer")
Tensors = dict[str, torch.Tensor]


def pairs(*modules: str, prefix: str = PREFIX, suffix: str = "") -> Tensors:
    return {f"{prefix}{module}.lora_{factor}{suffix}.weight": torch.ones(2, 2) for module in modules for factor in "AB"}


def check(folder: Path, kind: str, tensors: Tensors, config: dict[str, Any], rank: int = 2) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 4, "peft_type": "LORA"} | config))
    save_file(tensors, folder / "adapter_model.safetensors")
    check_shape(folder, event(rank=rank), family_of(kind), max_rank=16)


def event(**changes: Any) -> AdapterVersion:
    fields = {"policy": "default", "version": 3, "artifact": Artifact(path="a", sha256="0" * 64, size_bytes=1), "base_fingerprint": "0" * 64,
              "rank": 2, "targets": (), "reward_model_version": 0, "step": 0, "created_at": datetime(2026, 1, 1, tzinfo=UTC)}  # fmt: skip
    return AdapterVersion(**(fields | changes))


@pytest.mark.parametrize(
    ("kind", "tensors", "config"),
    [
        ("llama", pairs(*ATTENTION), {"target_modules": ["q_proj"]}),
        ("llama", pairs(*ATTENTION, "mlp.down_proj"), {"target_modules": "all-linear"}),
        ("qwen3", pairs(*ATTENTION), {"target_modules": r".*\.(q_proj|v_proj)$"}),
        ("qwen2", pairs(*ATTENTION), {"target_modules": ["model.layers.0.self_attn.q_proj"]}),
        ("llama", pairs(*ATTENTION), {"use_rslora": True, "target_modules": ["q_proj"]}),
        ("llama", pairs(*ATTENTION, prefix="model.layers.0."), {}),
        ("mixtral", pairs(*ATTENTION, *EXPERTS), {"rank_pattern": {"mlp.experts.gate_up_proj": 16}}),
        ("qwen3_moe", pairs(*EXPERTS), {"init_lora_weights": "gaussian"}),
        ("deepseek_v3", pairs("self_attn.q_a_proj", "mlp.shared_experts.up_proj", "mlp.gate_proj"), {}),
        ("llamba", pairs(*ATTENTION), {}),
    ],
)
def test_plain_lora_is_taken_however_its_targets_are_written(kind: str, tensors: Tensors, config: dict[str, Any], tmp_path: Path) -> None:
    check(tmp_path, kind, tensors, config)


REFUSED: dict[str, tuple[str, Tensors, dict[str, Any], str]] = {
    "DoRA": ("llama", pairs(*ATTENTION), {"use_dora": True}, "use_dora = True: vLLM has no DoRA: train it as plain LoRA"),
    "DoRA by its tensors": (
        "llama", pairs(*ATTENTION) | {f"{PREFIX}self_attn.q_proj.lora_magnitude_vector": torch.ones(2)}, {}, "lora_magnitude_vector belongs to DoRA",
    ),
    "biases": ("llama", pairs(*ATTENTION), {"bias": "lora_only"}, "bias = 'lora_only': trained biases are not served: train with bias = 'none'"),
    "biases of LoRA": ("llama", pairs(*ATTENTION), {"lora_bias": True}, "lora_bias = True: vLLM adds no biases"),
    "biases by their tensors": (
        "qwen2", pairs(*ATTENTION) | {f"{PREFIX}self_attn.q_proj.bias": torch.ones(2)}, {}, r"q_proj.bias is a whole weight or bias",
    ),
    "whole modules": ("llama", pairs(*ATTENTION), {"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]: whole modules beside LoRA"),
    "grown embeddings": (
        "llama", pairs(*ATTENTION) | {"base_model.model.model.embed_tokens.weight": torch.ones(9, 2)}, {}, "embed_tokens.weight changes embeddings",
    ),
    "an adapter on the head": ("llama", pairs("lm_head", prefix="base_model.model."), {}, "lm_head.lora_A.weight changes embeddings or output head"),
    "another kind of adapter": ("llama", pairs(*ATTENTION), {"peft_type": "IA3"}, "peft_type = 'IA3' is not LoRA"),
    "weights that PEFT takes off the base": (
        "llama", pairs(*ATTENTION), {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4' changes",
    ),
    "names as in memory": (
        "llama", pairs(*ATTENTION, suffix=".default"), {}, "with the adapter's name 'default': save it with PEFT's save_pretrained",
    ),
    "one expert at a time": ("mixtral", pairs("block_sparse_moe.experts.0.w1"), {}, "is of one expert, as PEFT named them before transformers 5"),
    "one of the experts' parameters": ("olmoe", pairs("mlp.experts"), {}, r"mlp.experts.base_layer \(gate_up_proj\) is missing: vLLM needs both"),
    "half a pair": (
        "llama", {f"{PREFIX}self_attn.q_proj.lora_A.weight": torch.ones(2, 2)}, {}, "self_attn.q_proj has lora_A or lora_B alone",
    ),
    "a router": (
        "mixtral", pairs("mlp.gate"), {}, r"mlp.gate.lora_A.weight: this replica serves LoRA on .* of a Mixtral; leave gate out of target_modules",
    ),
    "an MLP of a mixture": ("mixtral", pairs("mlp.up_proj"), {}, "leave up_proj out of target_modules"),
    "what vLLM folds away": ("deepseek_v3", pairs("self_attn.kv_b_proj"), {}, "acts on prompts and not on answers; leave kv_b_proj out"),
    "experts of an unknown family": ("llamba", pairs(*EXPERTS), {}, "this replica serves LoRA on .* of a base of an unknown family"),
    "a rank beyond the limit": ("llama", pairs(*ATTENTION), {"r": 32}, r"actor.max_rank = 16: raise actor.max_rank"),
    "a rank that only its tensors tell": (
        "llama", {f"{PREFIX}self_attn.q_proj.lora_{factor}.weight": torch.ones(32, 32) for factor in "AB"}, {}, "has rank 32, actor.max_rank = 16",
    ),
    "nothing at all": ("llama", {}, {}, "holds no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_cannot_be_served_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    kind, tensors, config, sentence = REFUSED[case]
    with pytest.raises(BadArtifact, match=sentence) as refused:
        check(tmp_path, kind, tensors, config, rank=config.get("r", 2))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("default@3")


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2}))
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80")
    family: ModelFamily | None = family_of("llama")
    with pytest.raises(BadArtifact, match=r"no adapter_model.safetensors but adapter_model.bin, a pickle that nothing here opens"):
        check_shape(tmp_path, event(), family, 16)


def test_a_policy_with_a_slash_in_its_name_is_refused_where_its_event_is_read() -> None:
    with pytest.raises(ValidationError, match="policy"):
        event(policy="org/adapter")
