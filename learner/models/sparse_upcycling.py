"""A dense model turned into a mixture of experts that answers the same (sparse upcycling, Komatsuzaki et al. 2023).

Every expert starts as a copy of the dense MLP and the router's weights are normalised over the chosen experts, so whatever
the router picks, the mixture of equal experts equals that MLP. Experts become different only through training.
"""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from learner.models.base_cache import ROUTER_STD, check_shape
from streams.core.errors import ConfigError

KEPT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
    "rope_parameters", "tie_word_embeddings", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""What a mixture's configuration takes over from the dense model's."""


def upcycle(dense: Any, experts: int, per_token: int, seed: int = 0) -> Any:
    """A mixture of ``experts`` equal experts with the dense model's weights: a Mixtral of a Llama or Mistral, a Qwen3-MoE of a Qwen3.

    Its router is random, from ``seed``. Raises ConfigError for any other shape.
    """
    check_shape(experts, per_token)
    kind = dense.config.model_type
    if kind not in MIXTURES:
        raise ConfigError(f"a {kind} cannot be upcycled, only {', '.join(MIXTURES)}")
    if getattr(dense.config, "attention_bias", False) or getattr(dense.config, "mlp_bias", False):
        raise ConfigError(f"this {kind} has biases, for which its mixture has no place")
    generator = torch.Generator().manual_seed(seed)
    moe = MIXTURES[kind](dense.config, experts, per_token)
    source, target = dense.state_dict(), {}
    for name, weight in moe.state_dict().items():
        block, _, part = name.partition(".mlp.")
        mlp = f"{block}.mlp."
        if part == "experts.gate_up_proj":
            gate_up = torch.cat([source[f"{mlp}gate_proj.weight"], source[f"{mlp}up_proj.weight"]])
            target[name] = gate_up.expand(experts, -1, -1).clone()
        elif part == "experts.down_proj":
            target[name] = source[f"{mlp}down_proj.weight"].expand(experts, -1, -1).clone()
        elif part == "gate.weight":
            target[name] = torch.randn(weight.shape, generator=generator) * ROUTER_STD
        else:
            target[name] = source[name]
    moe.load_state_dict(target)
    moe.generation_config = dense.generation_config
    return moe.to(dense.dtype)


def upcycle_folder(dense: Path, out: Path, experts: int, per_token: int, seed: int = 0) -> tuple[int, int, int]:
    """Upcycle the model in the folder ``dense`` into ``out``, with its tokenizer and a copy of the dense model (for the reward features).

    Returns how many parameters it had, has, and uses for a token. Raises ConfigError; a folder that exists is left alone.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; name a new folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(dense), local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(str(dense), dtype="auto", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{dense} holds no model and tokenizer that transformers can read: {str(error).splitlines()[0]}") from None
    moe = upcycle(model, experts, per_token, seed)
    incoming = out.parent / f".{out.name}.{uuid.uuid4().hex}"
    try:
        _save(model, tokenizer, incoming / "dense")
        _save(moe, tokenizer, incoming)
        incoming.rename(out)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    routed = sum(weight.numel() for name, weight in moe.named_parameters() if ".mlp.experts." in name)
    total = sum(weight.numel() for weight in moe.parameters())
    return sum(weight.numel() for weight in model.parameters()), total, total - routed + routed * per_token // experts


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _mixtral(dense: Any, experts: int, per_token: int) -> MixtralForCausalLM:
    return MixtralForCausalLM(MixtralConfig(
        **{key: getattr(dense, key) for key in KEPT},
        num_local_experts=experts, num_experts_per_tok=per_token, sliding_window=getattr(dense, "sliding_window", None), router_jitter_noise=0.0,
    ))  # fmt: skip


def _qwen3_moe(dense: Any, experts: int, per_token: int) -> Qwen3MoeForCausalLM:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(
        **{key: getattr(dense, key) for key in KEPT},
        num_experts=experts, num_experts_per_tok=per_token, moe_intermediate_size=dense.intermediate_size, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[],
    ))  # fmt: skip


MIXTURES: dict[str, Callable[[Any, int, int], Any]] = {"llama": _mixtral, "mistral": _mixtral, "qwen3": _qwen3_moe}
"""The mixture of each dense shape; its weights are normalised over the chosen experts, so that equal experts answer as one."""
