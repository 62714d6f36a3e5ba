"""A random tiny model of each family, as transformers saves it, with the tiny base's tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DeepseekV3Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

SHAPE: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.1,
}  # fmt: skip
LATENT: dict[str, Any] = {"kv_lora_rank": 512, "q_lora_rank": 24, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32}
"""vLLM's latent attention takes the published size of its cache alone: 512 + 64."""
ROUTED: dict[str, Any] = {"num_experts_per_tok": 2}
HEAD: dict[str, Any] = {"head_dim": 32}
"""vLLM's attention on a CPU takes heads of 32 and more."""
CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "mixtral": (MixtralConfig, ROUTED | HEAD | {"num_local_experts": 4}),
    "qwen3_moe": (Qwen3MoeConfig, ROUTED | HEAD | {"moe_intermediate_size": 48, "num_experts": 4, "norm_topk_prob": True}),
    "olmoe": (OlmoeConfig, ROUTED | {"num_experts": 4, "num_attention_heads": 2}),
    "deepseek_v3": (
        DeepseekV3Config,
        ROUTED | LATENT | {"num_key_value_heads": 4, "moe_intermediate_size": 48, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
                           "topk_group": 1, "first_k_dense_replace": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    ),
    "gpt_oss": (GptOssConfig, ROUTED | HEAD | {"num_local_experts": 4, "sliding_window": 8}),
    "llama": (LlamaConfig, HEAD),
    "mistral": (MistralConfig, HEAD | {"sliding_window": None}),
    "qwen2": (Qwen2Config, {"num_attention_heads": 2}),
    "qwen3": (Qwen3Config, HEAD),
}  # fmt: skip


def tiny_model(kind: str, folder: Path, tokenizer_of: Path, **changes: Any) -> Path:
    """Writes a random model of that ``model_type`` in float32 into ``folder``. ``changes`` are of its configuration."""
    made, own = CONFIGS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made(**(SHAPE | own | changes)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if (weight.dim() == 1 and not name.endswith("norm.weight")) or name.endswith("_bias"):
                weight.normal_(std=0.3)  # biases and sinks begin at zero: then nobody would miss them
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.05)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(tokenizer_of)).save_pretrained(folder)
    return folder
