"""The sizes of a base that decide how much memory it takes: what the probe's ``BaseShape`` lacks (unlike layers, latent attention, shared experts,
stored precision). From ``config.json``, so before a weight is read."""

import json
from importlib import resources
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from infra.machine.base_shape import BaseShape, config_in, first_of, shape_of, sizes_of
from infra.settings.policy_settings import PolicySettings


class ModelShape(BaseShape):
    """A decoder's sizes, counted in parameters. Norms, biases and routers' corrections are left out: they are below a thousandth."""

    dense_layers: int = Field(default=0, ge=0)
    """The first layers, which have a plain MLP in place of experts."""
    dense_intermediate: int = Field(default=0, ge=0)
    """Intermediate size of that MLP."""
    shared_intermediate: int = Field(default=0, ge=0)
    """Intermediate size of what every token passes beside the routed experts, all shared experts together."""
    tied: bool = False
    """The output head is the input embedding."""
    query_rank: int = Field(default=0, ge=0)
    """Latent attention (MLA): rank of the compressed queries; 0: not compressed."""
    key_rank: int = Field(default=0, ge=0)
    """Latent attention: rank of the compressed keys and values. 0: ordinary attention."""
    rope_size: int = Field(default=0, ge=0)
    """Latent attention: size of the part of a key that carries the position, one for all heads."""
    key_size: int = Field(default=0, ge=0)
    """Latent attention: size of the part of a key that does not."""
    value_size: int = Field(default=0, ge=0)
    """Latent attention: size of a head's values."""
    window: int = Field(default=0, ge=0)
    """Tokens that a sliding-window layer attends to. 0: none is limited."""
    windowed_layers: int = Field(default=0, ge=0)
    expert_bits: float = Field(default=16, gt=0)
    """Bits of one stored weight of the routed experts, scales included."""
    other_bits: float = Field(default=16, gt=0)
    """The same of all other weights."""
    positions: int = Field(default=0, ge=0)
    """Longest context. 0: not told."""

    @classmethod
    def from_config(cls, config: dict[str, Any], folder: Path = Path()) -> Self:
        """From ``config.json``, with transformers' names. Raises ConfigError for one that lacks a size."""
        sizes = sizes_of(config, folder)
        mixture = sizes["experts"] > 1
        kinds = config.get("layer_types") or []
        windowed = sum("sliding" in str(kind) for kind in kinds) if kinds else (sizes["layers"] if config.get("use_sliding_window", True) else 0)
        window = int(config.get("sliding_window") or 0)
        expert_bits, other_bits = _stored_bits(config)
        return cls(
            **sizes,
            dense_layers=_dense_layers(config, sizes["layers"]) if mixture else 0,
            dense_intermediate=int(config.get("intermediate_size") or 0) if mixture else 0,
            shared_intermediate=_shared(config, sizes["intermediate"]) if mixture else 0,
            tied=bool(config.get("tie_word_embeddings", False)),
            query_rank=int(config.get("q_lora_rank") or 0),
            key_rank=int(config.get("kv_lora_rank") or 0),
            rope_size=int(config.get("qk_rope_head_dim") or 0),
            key_size=int(config.get("qk_nope_head_dim") or 0),
            value_size=int(config.get("v_head_dim") or 0),
            window=window,
            windowed_layers=windowed if window else 0,
            expert_bits=expert_bits,
            other_bits=other_bits,
            positions=int(config.get("max_position_embeddings") or 0),
        )

    @property
    def mixture_layers(self) -> int:
        """Layers with routed experts."""
        return self.layers - self.dense_layers if self.experts > 1 else 0

    @property
    def attention_weights(self) -> int:
        """Parameters of one layer's attention."""
        return sum(first * second for first, second in self.attention_modules.values())

    @property
    def attention_modules(self) -> dict[str, tuple[int, int]]:
        """Sizes (in, out) of one layer's attention projections, by transformers' names."""
        hidden, heads = self.hidden, self.heads
        if not self.key_rank:
            wide, narrow = heads * self.head_size, self.key_heads * self.head_size
            return {"q_proj": (hidden, wide), "k_proj": (hidden, narrow), "v_proj": (hidden, narrow), "o_proj": (wide, hidden)}
        queries = heads * (self.key_size + self.rope_size)
        compressed = (
            {"q_a_proj": (hidden, self.query_rank), "q_b_proj": (self.query_rank, queries)} if self.query_rank else {"q_proj": (hidden, queries)}
        )
        return compressed | {
            "kv_a_proj_with_mqa": (hidden, self.key_rank + self.rope_size),
            "kv_b_proj": (self.key_rank, heads * (self.key_size + self.value_size)),
            "o_proj": (heads * self.value_size, hidden),
        }

    @property
    def routed_weights(self) -> int:
        """Parameters of all routed experts of all layers."""
        return 3 * self.mixture_layers * self.experts * self.hidden * self.intermediate

    @property
    def plain_weights(self) -> int:
        """Parameters of all layers without routed experts: attention, plain MLPs, shared experts, routers."""
        mlps = self.mixture_layers * (3 * self.hidden * self.shared_intermediate + self.hidden * self.experts)
        if self.experts == 1:
            mlps = 3 * self.layers * self.hidden * self.intermediate
        return self.layers * self.attention_weights + mlps + 3 * self.dense_layers * self.hidden * self.dense_intermediate

    @property
    def table_weights(self) -> int:
        """Parameters of one table of the vocabulary: the input embedding, or the output head."""
        return self.vocabulary * self.hidden

    @property
    def tables(self) -> int:
        return 1 if self.tied else 2

    @property
    def weights(self) -> int:
        """Parameters of the whole base."""
        return self.routed_weights + self.plain_weights + self.tables * self.table_weights

    @property
    def stored_bytes(self) -> int:
        """Size of the weights as they are stored."""
        others = self.weights - self.routed_weights
        return round((self.routed_weights * self.expert_bits + others * self.other_bits) / 8)


def model_shape_of(policy: PolicySettings) -> ModelShape:
    """The shape of the base that the settings name; a named base need not exist yet. Raises ConfigError for a folder without ``config.json``."""
    if isinstance(policy.base, Path):
        return model_shape_in(policy.base)
    return ModelShape(**shape_of(policy).model_dump(), tied=policy.base == "smollm2", positions=8192 if policy.base == "smollm2" else 2048)


def model_shape_in(folder: Path) -> ModelShape:
    """The shape from a folder's ``config.json``. Raises ConfigError."""
    return ModelShape.from_config(config_in(folder), folder)


def published_shapes() -> dict[str, ModelShape]:
    """Shapes of published models by name: what their ``config.json`` says, in ``shapes/``."""
    files = [file for file in resources.files("infra.planner").joinpath("shapes").iterdir() if file.name.endswith(".json")]
    return {
        file.name.removesuffix(".json"): ModelShape.from_config(json.loads(file.read_text())) for file in sorted(files, key=lambda file: file.name)
    }


def _dense_layers(config: dict[str, Any], layers: int) -> int:
    """Layers of a mixture that have a plain MLP: the first ones (DeepSeek), some by number, or all but every n-th (Qwen)."""
    if first := first_of(config, ("first_k_dense_replace",), 0):
        return first
    named, step = set(config.get("mlp_only_layers") or ()), int(config.get("decoder_sparse_step") or 1)
    return sum(layer in named or (layer + 1) % step != 0 for layer in range(layers))


def _shared(config: dict[str, Any], intermediate: int) -> int:
    """Intermediate size of the shared experts together; a model may have a whole MLP beside its experts (Gemma)."""
    if wide := first_of(config, ("shared_expert_intermediate_size",), 0):
        return wide
    if config.get("enable_moe_block"):
        return int(config["intermediate_size"])
    return first_of(config, ("n_shared_experts", "num_shared_experts"), 0) * intermediate


def _stored_bits(config: dict[str, Any]) -> tuple[float, float]:
    """Bits of a stored weight of the routed experts and of all others, scales included."""
    stored = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    plain = 32.0 if str(stored).endswith("float32") else 16.0
    how: dict[str, Any] = config.get("quantization_config") or {}
    method = str(how.get("quant_method", "")).lower()
    if method == "mxfp4":
        return 4.25, plain  # a scale of 8 bits for 32 weights
    if method == "fp8":
        return 8.0, 8.0
    if groups := how.get("config_groups"):  # compressed-tensors
        told: dict[str, Any] = next(iter(groups.values())).get("weights") or {}
        bits = float(told.get("num_bits", 8))
        bits += 16 / int(told["group_size"]) if (told.get("group_size") or 0) > 0 else 0
        only_experts = any("attn" in str(name) for name in how.get("ignore") or ())
        return bits, plain if only_experts else bits
    if bits_told := how.get("bits"):
        return float(bits_told) + 16 / max(1, int(how.get("group_size") or 128)), plain
    return plain, plain
