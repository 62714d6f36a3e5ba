"""The record of a model family: all that reward, learner and actor need to know of an architecture. Imports neither torch nor transformers.

A new family is one file beside this one, and one line in ``known_families.py``. Names are those of transformers 5, in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Projections of ordinary attention, and what is tried where the architecture is not known."""
MLP = ("gate_proj", "up_proj", "down_proj")
FUSED = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class RoutedExperts:
    """How a layer's routed experts lie. In transformers 5 they are two parameters of one module, 3-D, all experts together."""

    module: str = "mlp.experts"
    parameters: tuple[str, ...] = FUSED
    on_disk: str = "mlp.experts.N.gate_proj, up_proj, down_proj"
    """How published checkpoints hold them."""
    transposed: bool = False
    """``[E, in, out]`` in place of ``[E, out, in]``."""
    interleaved: bool = False
    """Rows of gate and up take turns, in place of all of gate and then all of up."""
    biases: bool = False
    gate: Literal["silu", "clamped swiglu"] = "silu"

    @property
    def plain(self) -> bool:
        """True for ``down(silu(gate(x)) * up(x))`` without biases: what the learner's factored products and the actor's on a CPU compute."""
        return not (self.transposed or self.interleaved or self.biases) and self.gate == "silu"


@dataclass(frozen=True)
class RouterRule:
    """How a router chooses experts and weighs those that it chose."""

    module: str = "mlp.gate"
    scores: Literal["softmax", "sigmoid"] = "softmax"
    weights: Literal["as they are", "to one", "to one, scaled", "as the configuration says"] = "to one"
    """What becomes of the chosen experts' scores; ``scaled`` is by ``routed_scaling_factor``."""


@dataclass(frozen=True)
class VllmNeeds:
    """What vLLM has to be told to serve LoRA on this family."""

    architecture: str
    """Name of vLLM's class."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Parts of PEFT's names and what vLLM calls them; vLLM silently drops names that it does not know."""
    marks_experts_fused: bool = False
    """vLLM takes this family's experts for 2-D, one module each, and would refuse PEFT's 3-D ones: the plug-in sets ``is_3d_moe_weight``."""
    unserved: Mapping[str, str] = field(default_factory=dict)
    """Projections on which vLLM takes an adapter but does not apply it everywhere, and why."""


@dataclass(frozen=True)
class ModelFamily:
    """One architecture."""

    name: str
    model_types: tuple[str, ...]
    """``model_type`` in ``config.json``."""
    vllm: VllmNeeds
    attention: tuple[str, ...] = ATTENTION
    """Projections of attention; of those that a model has, all that vLLM serves carry an adapter by default."""
    mlp: tuple[str, ...] = MLP
    """Projections of dense MLPs, and of shared experts."""
    experts: RoutedExperts | None = None
    shared: str | None = None
    """Name of the shared experts' module in a layer."""
    router: RouterRule | None = None
    windows: Literal["none", "all layers", "some layers"] = "none"
    """Which layers attend to a sliding window only, where ``config.json`` gives one."""
    sinks: bool = False
    """Each head has a learned logit that takes a part of the attention and gives nothing."""
    template: str = ""
    """What the chat templates of published checkpoints refuse or drop."""

    @property
    def served_attention(self) -> tuple[str, ...]:
        """Projections of attention on which vLLM serves an adapter whole."""
        return tuple(name for name in self.attention if name not in self.vllm.unserved)

    @property
    def lora_modules(self) -> tuple[str, ...]:
        """Last parts of the names of all modules that vLLM should wrap (``lora_target_modules``). Without them it also wraps the output head, which
        costs time at every token."""
        mlp = self.mlp if self.experts is None or self.shared else ()
        return (*self.served_attention, *mlp, *(("experts",) if self.experts else ()))
