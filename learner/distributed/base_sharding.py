"""Splits one copy of the base over several processes: each holds a part of every layer's experts and, where they divide, of attention's heads.

Every process keeps the whole adapter (it is small) and uses the part that belongs to its weights. So saving, checkpoints and steps are the same on
one process and on many. ``learner/distributed/process_mesh.py`` sums the gradients.
"""

import types
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from learner.distributed.process_mesh import Mesh
from reward.families.model_family import ATTENTION
from streams.core.errors import ConfigError

PLAN = "layers.*.self_attn."
HARMLESS = {"q_norm", "k_norm"}
"""Parts of attention that work on one head at a time, if transformers' own plan says so."""


def split_attention(model: Any, mesh: Mesh) -> set[int]:
    """Keep this process's heads of every layer's attention. Returns the ids of the adapter's weights on it; none when it is left whole.

    Whether heads stand apart in this architecture, transformers' own plan of tensor parallelism says.
    """
    plan = {name.removeprefix(PLAN): how for name, how in (model.config.base_model_tp_plan or {}).items() if name.startswith(PLAN)}
    apart = [plan.pop(name, None) for name in ATTENTION] == ["colwise", "colwise", "colwise", "rowwise"] and not set(plan) - HARMLESS
    heads = (model.config.num_attention_heads, model.config.num_key_value_heads)
    if mesh.model_size == 1 or not apart or any(count % mesh.model_size for count in heads):
        return set()
    split: set[int] = set()
    for attention in (module for name, module in model.named_modules() if name.endswith(".self_attn")):
        attention.register_forward_pre_hook(_IntoHeads(mesh), with_kwargs=True)
        for name in ATTENTION:
            split |= _split_linear(getattr(attention, name), mesh, by_rows=name != "o_proj")
        attention.o_proj.register_forward_hook(lambda module, inputs, output: mesh.out_of_split(output))
    return split


def split_experts(experts: Any, mesh: Mesh, factored: bool) -> None:
    """Keep this process's experts of one layer. Raises ConfigError when they do not divide evenly, or are computed by transformers' own code
    (not ``factored``), which wants all of them."""
    if mesh.model_size == 1:
        return
    if not factored:
        raise ConfigError(f"learner.model_parallel = {mesh.model_size}: this base's experts ({type(experts).__name__}) cannot be split, set it to 1")
    count = experts.gate_up_proj.shape[0]
    if count % mesh.model_size:
        raise ConfigError(f"learner.model_parallel = {mesh.model_size} does not divide this base's {count} experts")
    for weight in (experts.gate_up_proj, experts.down_proj):
        weight.data = weight.data[mesh.part(count)].clone()


class _IntoHeads:
    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def __call__(self, module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if inputs:
            return (*self._mesh.into_split(inputs[0]), *inputs[1:]), named
        (hidden,) = self._mesh.into_split(named["hidden_states"])
        return inputs, named | {"hidden_states": hidden}


def _split_linear(module: Any, mesh: Mesh, by_rows: bool) -> set[int]:
    """Keep a part of a linear module's outputs (``by_rows``) or inputs, PEFT's adapter on it or not."""
    inner = getattr(module, "base_layer", module)
    part = mesh.part(inner.weight.shape[0 if by_rows else 1])
    inner.weight.data = (inner.weight.data[part] if by_rows else inner.weight.data[:, part]).clone()
    if inner.bias is not None:
        inner.bias.data = inner.bias.data[part].clone() if by_rows else inner.bias.data / mesh.model_size
    if inner is module:
        return set()
    a, b, scale = module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"]

    def forward(self: Any, x: Tensor) -> Tensor:
        output = inner(x)
        if self.disable_adapters:
            return output
        low = linear(x.to(a.dtype), a if by_rows else a[:, part])
        return (output + scale * linear(low, b[part] if by_rows else b)).to(output.dtype)

    module.forward = types.MethodType(forward, module)
    return {id(a), id(b)}
