"""The arithmetic of memory, held against figures that others published (what each row measured stands beside it)."""

import json
import math
from pathlib import Path

import pytest

from infra.planner import memory_arithmetic as arithmetic
from infra.planner.memory_arithmetic import GIB, AdapterShape, RankLayout, rank_weights, trained_bytes
from infra.planner.model_shape import ModelShape, model_shape_in, model_shape_of, published_shapes
from infra.settings.policy_settings import PolicySettings
from streams.core.errors import ConfigError

SHAPES = published_shapes()
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PARAMETERS = {
    "mixtral-8x7b": 46.7e9, "olmoe-1b-7b": 6.92e9, "qwen3-4b": 4.02e9, "qwen3-30b-a3b": 30.5e9, "qwen3-235b-a22b": 235.1e9, "deepseek-v3": 671e9,
    "kimi-k2": 1.03e12, "kimi-k2-thinking": 1.03e12, "glm-5": 744e9, "glm-4.5-air": 106.8e9, "gpt-oss-120b": 116.8e9, "gpt-oss-20b": 20.9e9,
    "ling-1t": 1.0e12, "gemma-4-26b-a4b": 25.2e9,
}  # fmt: skip
"""As their makers tell them, without layers for speculation and without vision."""


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_parameters_of_published_models_are_counted_from_their_shape(name: str) -> None:
    assert SHAPES[name].weights == pytest.approx(PARAMETERS[name], rel=0.02)


def megatron_rest(shape: ModelShape, layout: RankLayout, data: int, expert_data: int) -> float:
    """A rank of Megatron at rest in full training: bfloat16 weights, float32 gradients, an optimizer split over copies of the same weights."""
    weights = rank_weights(shape, layout)
    return trained_bytes(weights.routed, expert_data) + trained_bytes(weights.others, data)


def row_1_at_rest() -> float:
    shape = SHAPES["gemma-4-26b-a4b"]
    adapter = arithmetic.adapter_weights(shape, AdapterShape(32, routed=()))
    return rank_weights(shape, RankLayout(tensor=2, expert=4)).bytes_of() + adapter / 2 * arithmetic.ADAPTER_BYTES


def row_2_at_rest() -> float:
    return megatron_rest(SHAPES["gemma-4-26b-a4b"], RankLayout(tensor=4, expert=8), data=2, expert_data=1)


def row_3_peak() -> float:
    shape, tokens = SHAPES["qwen3-30b-a3b"], 4096
    rest = megatron_rest(shape, RankLayout(expert=16), data=16, expert_data=1)
    # Weights are trained here, so the inputs of all matrices are kept; norms are fused (bfloat16 in, no copy).
    h, i, k = shape.hidden, shape.intermediate, shape.experts_per_token
    attention = 2 * h + shape.head_size * (2 * shape.heads + 2 * shape.key_heads) + 2 * h
    experts = k * (h + 2 * i + i + h) + 2 * h
    return rest + shape.layers * tokens * 2 * (attention + experts) + tokens * shape.vocabulary * (2 + 4)


def row_11_base() -> float:
    layout = RankLayout(pipeline=8, expert=8, shard=8)
    return rank_weights(SHAPES["ling-1t"], layout).bytes_of()


def row_14_base() -> float:
    return SHAPES["glm-5"].weights * 2.0


def row_17_peak() -> float:
    shape, tokens = SHAPES["qwen3-4b"], 16_384
    adapter = arithmetic.adapter_weights(shape, AdapterShape(16, modules=LINEAR))
    # Its loss keeps one table of the vocabulary in float32; activations are computed again.
    head = tokens * shape.vocabulary * 4
    return shape.weights * 2 + adapter * arithmetic.ADAPTER_BYTES + arithmetic.activation_bytes(shape, tokens, recompute=True) + head


def row_22_tokens() -> float:
    shape = SHAPES["kimi-k2-thinking"]
    return float(arithmetic.cached_tokens(shape, 0.9 * 141e9 - shape.stored_bytes / 8, tensor=8))


ROWS = {
    "1: Gemma-4-26B-A4B, LoRA r32 on 4 GPUs, at rest": (row_1_at_rest, 14.58 * GIB),
    "2: Gemma-4-26B-A4B in full on 8 GPUs, at rest": (row_2_at_rest, 62.14 * GIB),
    "3: Qwen3-30B-A3B pretraining on 16 GPUs, peak": (row_3_peak, 62.17 * GIB),
    "11: Ling-1T's base on a rank of 64": (row_11_base, 33e9),
    "14: GLM-5.2's base in bfloat16": (row_14_base, 1403 * GIB),
    "17: Qwen3-4B, LoRA r16, 16 k tokens on 1 GPU, peak": (row_17_peak, 23.3 * GIB),
    "22: Kimi-K2-Thinking on 8 x H200, tokens in the cache": (row_22_tokens, 715_072),
    "23: Kimi-K2.5 INT4 on disk": (lambda: float(SHAPES["kimi-k2-thinking"].stored_bytes), 595e9),
}


@pytest.mark.parametrize("row", ROWS)
def test_published_figures_are_met_within_a_seventh(row: str) -> None:
    computed, measured = ROWS[row]
    assert computed() == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(("name", "ranks", "gib"), [("qwen3-235b-a22b", 8, 161.5), ("glm-4.5-air", 8, 89.7)])
def test_of_rows_whose_sequence_is_not_told_the_weights_alone_are_less_than_what_was_measured(name: str, ranks: int, gib: float) -> None:
    """Row 16: neither length nor batch of the measurement is published, and they decide the rest."""
    assert rank_weights(SHAPES[name], RankLayout(expert=ranks, shard=ranks)).bytes_of() < gib * GIB


def test_ling_on_32_gpus_leaves_no_room_for_what_64_gpus_had_beside_the_base() -> None:
    shape = SHAPES["ling-1t"]
    on_32 = rank_weights(shape, RankLayout(pipeline=4, expert=8, shard=8)).bytes_of()
    on_64 = rank_weights(shape, RankLayout(pipeline=8, expert=8, shard=8)).bytes_of()
    assert on_32 > 0.75 * 80e9  # row 11: it runs out of memory while it is loaded, when a part lies there twice
    assert on_64 < 0.5 * 80e9


def test_a_latent_cache_is_small_and_is_not_split() -> None:
    kimi, mixtral = SHAPES["kimi-k2"], SHAPES["mixtral-8x7b"]
    assert arithmetic.cache_bytes_per_token(kimi) == 70_272
    assert arithmetic.cache_bytes_per_token(kimi, tensor=8) == 70_272
    assert arithmetic.cache_bytes_per_token(mixtral) == 2 * 32 * 8 * 128 * 2
    assert arithmetic.cache_bytes_per_token(mixtral, tensor=8) == 2 * 32 * 128 * 2
    assert arithmetic.cache_bytes_per_token(mixtral, tensor=16) == 2 * 32 * 128 * 2  # a head cannot be split


def test_sliding_windows_bound_the_cache() -> None:
    shape = SHAPES["gpt-oss-20b"]
    per_layer = arithmetic.cache_bytes_per_token(shape) / shape.layers
    assert arithmetic.cache_bytes(shape, 100) == round(per_layer * 24 * 100)
    assert arithmetic.cache_bytes(shape, 10_000) == round(per_layer * 12 * (10_000 + 128))
    assert SHAPES["qwen3-4b"].windowed_layers == 0


def test_an_adapter_on_experts_is_most_of_it() -> None:
    shape = SHAPES["qwen3-30b-a3b"]
    attention, both = (arithmetic.adapter_weights(shape, AdapterShape(8, routed=routed)) for routed in ((), ("gate_up_proj", "down_proj")))
    assert attention == 48 * 8 * (2048 + 4096 + 2 * (2048 + 512) + 4096 + 2048)
    assert both - attention == 48 * 128 * 8 * (2048 + 1536 + 768 + 2048)
    assert both * 4 == pytest.approx(1.3e9, rel=0.05)  # in float32, as it is published


def test_recomputing_spares_most_of_a_pass() -> None:
    shape = SHAPES["qwen3-4b"]
    kept, again = (arithmetic.activation_bytes(shape, 16_384, recompute) for recompute in (False, True))
    assert again < kept / 8
    assert arithmetic.head_bytes(shape, 1024) == 1024 * 151_936 * 10


def test_splitting_over_ranks_splits_what_it_can() -> None:
    shape = SHAPES["qwen3-30b-a3b"]
    one, split = rank_weights(shape), rank_weights(shape, RankLayout(tensor=2, expert=4))
    assert one.total == shape.weights
    assert split.routed == one.routed // 4
    assert split.others == pytest.approx(one.others / 2, abs=2)
    # 61 layers on 4 stages: the fullest holds 16 of them, not 15.25.
    deepseek = SHAPES["deepseek-v3"]
    assert rank_weights(deepseek, RankLayout(pipeline=4)).routed == round(deepseek.routed_weights * 16 / 61)


def test_a_folders_own_configuration_gives_the_shape(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 100,
              "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 48,
              "decoder_sparse_step": 2, "mlp_only_layers": [1], "torch_dtype": "float32"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config}))
    shape = model_shape_in(tmp_path)
    assert (shape.dense_layers, shape.dense_intermediate, shape.shared_intermediate) == (3, 64, 48)
    assert shape.stored_bytes == 4 * shape.weights
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config.json lacks a size"):
        model_shape_in(tmp_path)
    (tmp_path / "config.json").write_text("no")
    with pytest.raises(ConfigError, match=r"no readable config.json"):
        model_shape_in(tmp_path)


def test_the_bases_that_are_made_here_have_the_shape_of_their_folders(tiny_base: Path) -> None:
    named, written = model_shape_of(PolicySettings(base="tiny")), model_shape_in(tiny_base)
    assert named.model_dump(exclude={"positions", "expert_bits", "other_bits"}) == written.model_dump(
        exclude={"positions", "expert_bits", "other_bits", "dense_intermediate"}) | {"dense_intermediate": 0}  # fmt: skip
    from safetensors import safe_open

    stored = 0
    for file in tiny_base.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:  # type: ignore[no-untyped-call]
            stored += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    assert written.weights == pytest.approx(stored, rel=0.001)
