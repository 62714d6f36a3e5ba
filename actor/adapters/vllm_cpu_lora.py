"""A vLLM plug-in that serves PEFT's LoRA on fused experts, also on CPUs.

vLLM calls ``register`` in each of its processes (entry point group ``vllm.general_plugins``). It fixes four problems of vLLM 0.32:

- Everywhere: vLLM takes the experts of most mixtures for one module each and refuses PEFT's, which are fused; and it silently drops weights with
  names that it does not know, such as a Mixtral's ``mlp.experts`` (transformers 5), so that such an adapter would be served without its experts.
  What each family needs stands in its record (reward/families).
- On a CPU: with LoRA on, vLLM picks the Triton expert kernel, which a CPU lacks.
- On a CPU: its LoRA gathers weights per token, and uses the *last* adapter for tokens without an adapter when a batch mixes both.
- On a CPU: it adds LoRA to a product that is already rounded to bfloat16, which loses half of a small adapter.

The last three are replaced by the products in actor/adapters/mixed_lora_products.py.
"""

import os
from typing import Any

import torch

from actor.adapters.mixed_lora_products import ExpertLora, FrozenWeight, Gating, Mix, clamped_swiglu, experts, linear_lora, mix_of, swiglu
from actor.process_forks import EXPERT_LAYOUT, PARENT, die_with_parent
from reward.families.known_families import family_of
from reward.families.model_family import ModelFamily
from reward.features.frozen_product import can_pack


def register() -> None:
    """Patch vLLM in this process. Imports it; safe to call twice."""
    from vllm.platforms import current_platform

    if os.environ.get(PARENT) == str(os.getppid()):
        die_with_parent()
    _take_peft_by_family()
    if not current_platform.is_cpu():
        return
    _spare_the_inspection()
    import vllm.lora.punica_wrapper.punica_cpu as punica_cpu
    import vllm.model_executor.layers.fused_moe.oracle.unquantized as oracle
    import vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method as method

    if getattr(oracle.select_unquantized_moe_backend, "serves_lora_on_cpu", False):
        return
    choose = oracle.select_unquantized_moe_backend
    mixing_experts = _mixing_experts()

    def select_unquantized_moe_backend(moe_config: Any) -> Any:
        if moe_config.is_lora_enabled:
            return oracle.UnquantizedMoeBackend.CPU, mixing_experts
        return choose(moe_config)

    select_unquantized_moe_backend.serves_lora_on_cpu = True  # type: ignore[attr-defined]
    oracle.select_unquantized_moe_backend = select_unquantized_moe_backend
    method.select_unquantized_moe_backend = select_unquantized_moe_backend  # it was imported by name
    punica_cpu.PunicaWrapperCPU = _mixing_wrapper()
    _round_linear_layers_once()


def _take_peft_by_family() -> None:
    """Have vLLM take PEFT's names and fused experts on every family, when it makes a model ready for LoRA."""
    from vllm.lora.model_manager import LoRAModelManager

    init = LoRAModelManager.__init__
    if getattr(init, "takes_peft", False):
        return

    def init_for_peft(self: Any, model: Any, *args: Any, **named: Any) -> None:
        take_peft(model, family_of(model.config.model_type))
        init(self, model, *args, **named)

    init_for_peft.takes_peft = True  # type: ignore[attr-defined]
    LoRAModelManager.__init__ = init_for_peft


def take_peft(model: Any, family: ModelFamily | None) -> None:
    """Tell a vLLM model what its family needs so that PEFT's adapters load."""
    from vllm.model_executor.models.utils import WeightsMapper

    if family is None:
        return
    if family.vllm.marks_experts_fused:
        model.is_3d_moe_weight = True
    if family.vllm.renames:
        mapper = getattr(model, "hf_to_vllm_mapper", None) or WeightsMapper()
        model.hf_to_vllm_mapper = mapper | WeightsMapper(orig_to_new_substr=dict(family.vllm.renames))


def _spare_the_inspection() -> None:
    """Have vLLM look at a Mixtral's class here, where it is imported already: the first time on a machine it imports all of vLLM in a child for it.

    Only on a CPU: with a GPU, what is imported here might initialise CUDA before the engine's process is made.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.mixtral import MixtralForCausalLM

    ModelRegistry.register_model("MixtralForCausalLM", MixtralForCausalLM)


def _round_linear_layers_once() -> None:
    """Let linear layers in bfloat16 add LoRA to their product before it is rounded. In float32, vLLM's own way is as good."""
    import vllm.model_executor.layers.utils as utils
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

    pack_as_vllm, apply_as_vllm = utils.dispatch_cpu_unquantized_gemm, BaseLinearLayerWithLoRA._apply_sync

    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:
        weight = layer.weight
        if not remove_weight or weight.is_meta or weight.ndim != 2 or weight.dtype != torch.bfloat16 or not can_pack(weight.dtype):
            pack_as_vllm(layer, remove_weight)
            return
        frozen = layer.frozen_weight = FrozenWeight(weight)
        layer.cpu_linear = lambda x, _, bias: frozen.times(x, bias_O=bias)
        layer.weight = torch.nn.Parameter(weight.new_empty(0), requires_grad=False)

    def apply_rounding_once(self: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        frozen, mix = getattr(self.base_layer, "frozen_weight", None), self.punica_wrapper.mix
        if frozen is None or mix is None:
            output: torch.Tensor = apply_as_vllm(self, x, bias)
            return output
        rows = x.reshape(-1, x.shape[-1])
        lora = linear_lora(rows, self.lora_a_stacked, self.lora_b_stacked, mix)
        return frozen.times(rows, lora, bias).view(*x.shape[:-1], -1)

    utils.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm
    BaseLinearLayerWithLoRA._apply_sync = apply_rounding_once


def _mixing_wrapper() -> type:
    """The class that adds LoRA to attention and other linear layers."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    class MixingPunicaWrapper(PunicaWrapperCPU):
        """Computes once per batch which row has which adapter, for all layers."""

        def __init__(self, *args: Any, lora_config: Any, **kwargs: Any) -> None:
            super().__init__(*args, lora_config=lora_config, **kwargs)
            self._rank, self._dtype = lora_config.max_lora_rank, lora_config.lora_dtype
            self.mix: Mix | None = None  # the profiling run comes before any metadata

        def update_metadata(self, *args: Any, **kwargs: Any) -> None:
            super().update_metadata(*args, **kwargs)
            self.mix = mix_of(self.token_lora_indices, self._rank, self._dtype)

        def add_lora_linear(self, y: Any, x: Any, lora_a_stacked: Any, lora_b_stacked: Any, scale: float, output_slices: Any, **_: Any) -> None:
            if self.mix is not None:
                y.view(-1, y.shape[-1]).add_(linear_lora(x.view(-1, x.shape[-1]), lora_a_stacked, lora_b_stacked, self.mix))

    return MixingPunicaWrapper


def _mixing_experts() -> type:
    """The class that runs a layer of experts, each token with its own adapter."""
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.fused_moe.experts.lora_experts_mixin import LoRAExpertsMixin

    class MixingLoRAExperts(LoRAExpertsMixin, CPUUnquantizedExperts):
        """Plain products instead of the C++ kernel, which has no place for an adapter."""

        @staticmethod
        def is_supported_config(*_: Any) -> tuple[bool, str | None]:
            return True, None

        @staticmethod
        def _supports_activation(activation: Any) -> bool:
            return activation in (MoEActivation.SILU, MoEActivation.SWIGLUOAI)

        @staticmethod
        def _supports_parallel_config(moe_parallel_config: Any) -> bool:
            return not moe_parallel_config.use_ep

        def process_weights_after_loading(self, layer: Any) -> None:
            layout = os.environ.get(EXPERT_LAYOUT, "auto")
            packs = layout == "packed" or (layout == "auto" and layer.w13_weight.dtype == torch.bfloat16)
            self._gate_up, self._down = ([FrozenWeight(of_one, packs) for of_one in both] for both in (layer.w13_weight, layer.w2_weight))
            for weight, kept in ((layer.w13_weight, self._gate_up), (layer.w2_weight, self._down)):
                if kept[0].packed:  # vLLM asks for the shape alone: the packed copy is the only one
                    weight.data = weight.new_empty(1).expand(weight.shape)

        def apply(self, output: Any, hidden_states: Any, w1: Any, w2: Any, topk_weights: Any, topk_ids: Any, activation: Any,
                  *_: Any, **__: Any) -> None:  # fmt: skip
            gating = Gating(clamped_swiglu if activation == MoEActivation.SWIGLUOAI else swiglu, self.w1_bias, self.w2_bias)
            context = self._lora_context
            lora, mix = None, context.punica_wrapper.mix if context is not None else None
            if mix is not None:
                lora = ExpertLora(context.w13_lora_a_stacked, context.w13_lora_b_stacked, context.w2_lora_a_stacked[0], context.w2_lora_b_stacked[0])
            output.copy_(experts(hidden_states, self._gate_up, self._down, topk_weights, topk_ids.long(), lora, mix, gating))

    return MixingLoRAExperts
