"""How many bytes a model takes: weights, adapter, gradients, optimizer, activations, logits, key-value cache. Pure functions of its shape.

Every function says what it counts, so that a planner can add up other layouts and other engines from the same parts. Counted as the code of this
project computes (learner/models/lora_policy.py); where another engine computes otherwise, the caller passes its own numbers of bytes.
"""

from dataclasses import dataclass

from infra.planner.model_shape import ModelShape

GIB = 2**30
ADAPTER_BYTES = 4 + 4 + 8
"""Of one trained weight: itself, its gradient, and AdamW's two moments, all in float32."""
CAST_BYTES = 2
"""Of one trained weight in the tokens' precision: the copy that is multiplied with."""


@dataclass(frozen=True)
class RankLayout:
    """Over how many ranks each part of a model is split."""

    tensor: int = 1
    """Ranks that share every matrix outside the routed experts, and the tables of the vocabulary."""
    pipeline: int = 1
    """Ranks that each hold consecutive layers."""
    expert: int = 1
    """Ranks that each hold other routed experts."""
    shard: int = 1
    """Ranks over which what is not a routed expert is split once more (FSDP); it is gathered layer by layer."""


@dataclass(frozen=True)
class RankWeights:
    """Parameters on the fullest rank of a layout."""

    routed: int
    others: int

    @property
    def total(self) -> int:
        return self.routed + self.others

    def bytes_of(self, routed_bytes: float = 2, other_bytes: float = 2) -> int:
        """Their size, at so many bytes for each."""
        return round(self.routed * routed_bytes + self.others * other_bytes)


def rank_weights(shape: ModelShape, layout: RankLayout = RankLayout()) -> RankWeights:
    """Parameters on the fullest rank: the last stage of a pipeline, which has the head; with one stage, the embedding too."""
    stages, ranks = layout.pipeline, layout.tensor * layout.shard
    tables = (shape.tables if stages == 1 else 1) * shape.table_weights / ranks
    routed = shape.routed_weights / (_stage_share(shape.layers, stages) * layout.expert)
    return RankWeights(round(routed), round(shape.plain_weights / (_stage_share(shape.layers, stages) * ranks) + tables))


def _stage_share(layers: int, stages: int) -> float:
    """Over how many such stages as the fullest one the layers would be split."""
    return layers / -(-layers // stages)


def trained_bytes(weights: float, optimizer_ranks: int = 1, weight_bytes: float = 2, gradient_bytes: float = 4, optimizer_bytes: float = 12) -> float:
    """Weights that are trained in full, with gradients and a mixed-precision optimizer (a float32 copy and two moments) that is split over
    ``optimizer_ranks``."""
    return weights * (weight_bytes + gradient_bytes + optimizer_bytes / optimizer_ranks)


@dataclass(frozen=True)
class AdapterShape:
    """Which modules carry an adapter, and its rank."""

    rank: int
    expert_rank: int = 0
    """0: the same as ``rank``."""
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    routed: tuple[str, ...] = ("gate_up_proj", "down_proj")
    shared: tuple[str, ...] = ()


def adapter_weights(shape: ModelShape, adapter: AdapterShape) -> int:
    """Trained parameters. Names that the shape does not have count nothing: they are refused elsewhere."""
    attention, hidden = shape.attention_modules, shape.hidden
    plain = dict.fromkeys(("gate_proj", "up_proj"), (hidden, shape.intermediate)) | {"down_proj": (shape.intermediate, hidden)}
    found = attention if shape.experts > 1 else attention | plain
    of_modules = sum(adapter.rank * sum(found[name]) for name in adapter.modules if name in found)
    expert_rank = adapter.expert_rank or adapter.rank
    fused = {"gate_up_proj": (hidden, 2 * shape.intermediate), "down_proj": (shape.intermediate, hidden)}
    of_experts = sum(expert_rank * sum(fused[name]) for name in adapter.routed if name in fused)
    wide = shape.shared_intermediate
    shared = {"gate_proj": (hidden, wide), "up_proj": (hidden, wide), "down_proj": (wide, hidden)}
    of_shared = sum(adapter.rank * sum(shared[name]) for name in adapter.shared if name in shared and wide)
    return shape.layers * of_modules + shape.mixture_layers * (shape.experts * of_experts + of_shared)


def layer_activation_bytes(shape: ModelShape, element_bytes: int = 2) -> int:
    """Bytes that one token of one mixture layer (or layer of a dense model) keeps for the backward pass of an adapter on a frozen base.

    A frozen matrix keeps nothing. Kept are: the float32 input of each norm and what it is normalised to; queries, keys, values and the output of
    attention; and of the MLP, for each expert that a token goes to, its input, gate, activated gate, up and their product, and its output.
    """
    if shape.key_rank:
        attended = shape.heads * (2 * (shape.key_size + shape.rope_size) + 2 * shape.value_size) + shape.query_rank + shape.key_rank + shape.rope_size
        normed = shape.query_rank + shape.key_rank
    else:
        attended = shape.head_size * (2 * shape.heads + 2 * shape.heads)  # keys and values as wide as the queries: they are repeated for them
        normed = shape.head_size * (shape.heads + shape.key_heads)
    experts = shape.experts_per_token if shape.experts > 1 else 1
    mlp = experts * 4 * shape.intermediate + 4 * shape.shared_intermediate + (experts * 2 * shape.hidden if shape.experts > 1 else 0)
    return 4 * (2 * shape.hidden + normed) + element_bytes * (2 * shape.hidden + attended + mlp)


def activation_bytes(shape: ModelShape, tokens: int, recompute: bool, element_bytes: int = 2) -> int:
    """What a pass over so many tokens keeps at its peak. ``recompute``: only each layer's input, and one layer's activations at a time, with their
    gradients."""
    layer = tokens * layer_activation_bytes(shape, element_bytes)
    if recompute:
        return tokens * shape.layers * shape.hidden * element_bytes + round(1.5 * layer)
    return shape.layers * layer


def head_bytes(shape: ModelShape, rows: int, element_bytes: int = 2) -> int:
    """Log-probabilities of so many tokens at once: logits in the activations' precision, and two tables of the vocabulary in float32."""
    return rows * shape.vocabulary * (element_bytes + 8)


def cache_bytes_per_token(shape: ModelShape, element_bytes: float = 2, tensor: int = 1) -> float:
    """Keys and values of one token of one sequence, over all layers, on one rank. A latent (MLA) is not split: every rank holds it whole."""
    if shape.key_rank:
        return shape.layers * (shape.key_rank + shape.rope_size) * element_bytes
    return shape.layers * 2 * max(1, shape.key_heads / tensor) * shape.head_size * element_bytes


def cache_bytes(shape: ModelShape, tokens: int, element_bytes: float = 2, tensor: int = 1) -> int:
    """Keys and values of one sequence of so many tokens; a layer with a sliding window keeps only that."""
    per_layer = cache_bytes_per_token(shape, element_bytes, tensor) / shape.layers
    within = min(tokens, shape.window) if shape.window else tokens
    return round(per_layer * (shape.windowed_layers * within + (shape.layers - shape.windowed_layers) * tokens))


def cached_tokens(shape: ModelShape, free_bytes: float, element_bytes: float = 2, tensor: int = 1) -> int:
    """Tokens whose keys and values fit, without sliding windows."""
    return max(0, int(free_bytes / cache_bytes_per_token(shape, element_bytes, tensor)))
