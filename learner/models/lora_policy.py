"""The policy: a frozen base with the LoRA adapter that is trained, on attention and on experts. LoRA is attached here; only this module uses PEFT."""

import json
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import transformers_weight_conversion
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute
from transformers import AutoTokenizer

from learner.distributed.base_sharding import split_attention, split_experts
from learner.distributed.process_mesh import ALONE, Mesh
from learner.kernels.expert_kernels import kernel_for
from learner.kernels.expert_lora import Factors, FrozenStack, thin
from learner.kernels.output_head import TokenScores
from learner.models.base_loading import is_fused, load_base, packed_states
from learner.models.lora_targets import SHARED, targets_of
from learner.models.sequence_packing import Packed
from learner.rollouts.router_replay import RouterChoices
from learner.settings import LearnerSettings
from reward.families.base_folder import read_base
from reward.features.frozen_product import product
from streams.core.chat_prompt import call_names, has_media, template_inputs, with_messages
from streams.core.errors import BadArtifact, InvalidEvent
from streams.core.events import Message

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


@dataclass(frozen=True)
class TokenStats:
    """Results of a forward pass for each output token; zero on padding."""

    logprobs_BT: Tensor
    """Log-probability of each sampled token, in nats, at the given temperature."""
    entropy_BT: Tensor
    """Entropy of the distribution at each token, in nats; without gradient."""
    hidden_KH: Tensor
    """The state that each output token was predicted from, row by row as in ``Packed.mask_BT``; without gradient."""


class Policy:
    """Base + adapter + tokenizer on one device, or the device's part of the base. The base is frozen; only the adapter's float32 weights
    take gradients."""

    def __init__(self, base: Path, settings: LearnerSettings, device: torch.device | str = "cpu", mesh: Mesh = ALONE) -> None:
        self.base, self.mesh = base, mesh
        self.device = torch.device(device)
        read_base(base)  # says in a sentence what transformers would say in a traceback
        self.tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
        loaded = load_base(base, settings)
        loaded.facts.check_tokens(len(self.tokenizer) - 1)
        model, self.family = loaded.model, loaded.family
        self.lora_targets = targets_of(model, settings, loaded.family, loaded.rounds_experts)
        fused = self.lora_targets.parameters
        own_rank = fused if settings.expert_rank else []
        config = LoraConfig(
            task_type="CAUSAL_LM", r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0,
            target_modules=self.lora_targets.modules,
            target_parameters=fused, rank_pattern=dict.fromkeys(own_rank, settings.expert_rank),
            alpha_pattern=dict.fromkeys(own_rank, settings.alpha * settings.expert_rank / settings.rank),
        )  # fmt: skip
        with torch.random.fork_rng(), warnings.catch_warnings(), names_as_they_are():
            warnings.filterwarnings("ignore", message=r"The following \w+_pattern keys did not match")  # PEFT looks for modules; they name parameters
            torch.manual_seed(settings.seed)
            self._peft = get_peft_model(model, config, autocast_adapter_dtype=True).eval()
        self._peft.peft_config["default"].base_model_name_or_path = base.name
        self.causal_lm = self._peft.base_model.model
        """The transformers model, adapter included."""
        self.parameters: dict[str, Tensor] = {name: p for name, p in self._peft.named_parameters() if p.requires_grad}
        """The adapter's weights by name: all that is trained."""
        split = split_attention(self.causal_lm, mesh)
        for module in self._peft.modules():
            if is_fused(experts := _innermost(getattr(module, "experts", None))):
                split_experts(experts, mesh, id(experts) in loaded.factored)
        self._peft.to(self.device)  # only now: what the other processes hold has never been on this device
        self._factors: list[Factors] = []
        for module in self._peft.modules():
            split |= _factor(module, mesh, self._factors, settings, loaded.factored)
            _factor_linear(module, self._factors)
        head = self.causal_lm.lm_head
        self._packed_head = FrozenStack(head.weight[None], packs=True) if settings.packs_weights and head.bias is None else None
        if settings.recompute_activations:
            for layer in self.causal_lm.model.layers:
                layer.forward = partial(_recomputed, layer.forward)
        self.whole = frozenset(name for name, weight in self.parameters.items() if id(weight) not in split)
        """Names of the adapter's weights on parts of the base that every process of a row holds."""
        self.routing = RouterChoices(self.causal_lm, loaded.family) if settings.replay_routing else None

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of all that carries an adapter."""
        return self.lora_targets.names

    @property
    def hidden_size(self) -> int:
        """Size of the states in ``TokenStats.hidden_KH``."""
        return int(self.causal_lm.config.hidden_size)

    @property
    def eos_id(self) -> int:
        """The token that ends an answer, which also pads."""
        return int(self.tokenizer.eos_token_id)

    def prompt_ids(self, prompt: Sequence[Message]) -> tuple[int, ...]:
        """The prompt as the engine sees it: chat template and the opening of the answer.

        Raises InvalidEvent: ``media`` where there is more than text, ``template`` where the template refuses the messages (many want roles that take
        turns, or no system message).
        """
        return self._rendered(prompt, add_generation_prompt=True)

    def _rendered(self, prompt: Sequence[Message], add_generation_prompt: bool) -> tuple[int, ...]:
        if has_media(prompt):
            raise InvalidEvent("media", "the prompt holds an image, a sound or a file, and the learner renders text alone")
        turns, arguments = template_inputs(prompt)
        try:
            return tuple(self.tokenizer.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, return_dict=False, **arguments))
        except Exception as error:  # noqa: BLE001 - the boundary to a template's own program, which raises what it likes at messages from anybody
            roles = ", ".join(message.role[:20] for message in list(prompt)[:8])
            raise InvalidEvent("template", f"the base's chat template refuses these roles ({roles}): {type(error).__name__}: {error}") from None

    def answer_ids(self, text: str, ended: bool, limit: int) -> tuple[int, ...]:
        """An answer's tokens, ``limit`` of them at most; with the end token when it ``ended`` and was not cut here."""
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), *([self.eos_id] if ended else [])]
        return tuple(ids[:limit])

    def reply_ids(self, prompt: Sequence[Message], text: str, tool_calls: Sequence[dict[str, Any]], ended: bool, limit: int) -> tuple[int, ...]:
        """The same for an answer with tool calls, whose tokens are those that the chat template writes for them after the prompt.

        Raises InvalidEvent (``tool_calls``) where the template writes no calls, or another prompt before them.
        """
        if not tool_calls:
            return self.answer_ids(text, ended, limit)
        opened, spoken = self.prompt_ids(prompt), Message(role="assistant", content=text, tool_calls=tuple(tool_calls))
        whole = self._rendered(with_messages(prompt, (*prompt, spoken)), add_generation_prompt=False)
        written = whole[len(opened) :]
        written = written[: written.index(self.eos_id)] if self.eos_id in written else written
        said = self.tokenizer.decode(written)
        if whole[: len(opened)] != opened or any(name not in said for name in call_names(tool_calls)):
            raise InvalidEvent("tool_calls", "the base's chat template does not write these tool calls as an answer to their prompt")
        return (*written, *([self.eos_id] if ended else []))[:limit]

    def stats(self, packed: Packed, temperature: float = 1.0) -> TokenStats:
        """Log-probabilities and entropies of the output tokens, under the adapter or (inside ``reference``) the base."""
        hidden_KH = self._hidden(packed)
        head = self.causal_lm.lm_head
        logprobs_K, entropy_K = TokenScores.apply(hidden_KH, head.weight, head.bias, packed.target_K, temperature)
        return TokenStats(packed.spread(logprobs_K), packed.spread(entropy_K), hidden_KH.detach())

    def distributions(self, packed: Packed, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of the whole vocabulary at every output token, [K, V], in nats."""
        return torch.log_softmax(self.causal_lm.lm_head(self._hidden(packed)).float() / temperature, dim=-1)

    def _hidden(self, packed: Packed) -> Tensor:
        return packed_states(self.causal_lm, packed)

    def next_logits(self, **inputs: Any) -> Tensor:
        """Logits of what follows each row's last token, [B, V]; arguments as of the transformers model, whose cache they fill.

        The head is given a matrix: for a slice of a batch it would copy its whole weight (0.5 s a prompt on a slow core).
        """
        hidden_BH = self.causal_lm.model(use_cache=True, **inputs).last_hidden_state[:, -1]
        hidden_BH = hidden_BH.contiguous()
        return self.causal_lm.lm_head(hidden_BH) if self._packed_head is None else self._packed_head.times(0, hidden_BH)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Context in which the adapter does not change, so that it is cast only once."""
        for factors in self._factors:
            factors.keep(True)
        try:
            yield
        finally:
            for factors in self._factors:
                factors.keep(False)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Context in which the adapter is off: the model is the base, without a second copy of it."""
        with self._peft.disable_adapter():
            yield

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of modules that carry an adapter, such as attention and experts, each of which may fail to load on its own."""
        return tuple(sorted({_group(name) for name, module in self._peft.named_modules() if isinstance(module, BaseTunerLayer)}))

    @contextmanager
    def without(self, group: str) -> Iterator[None]:
        """Within, the adapter on one group of modules is off."""
        layers = [module for name, module in self._peft.named_modules() if isinstance(module, BaseTunerLayer) and _group(name) == group]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    @contextmanager
    def as_it_was(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Within, the adapter has these weights, by the names of ``parameters``. Without gradients."""
        now = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        try:
            self._put(weights)
            yield
        finally:
            self._put(now)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.parameters.items():
                weight.copy_(weights[name])

    def routed(self, chosen_LNK: Tensor | None) -> AbstractContextManager[None]:
        """Context in which tokens go to these experts (learner/rollouts/router_replay.py); None: the routers choose."""
        return nullcontext() if self.routing is None or chosen_LNK is None else self.routing.replayed(chosen_LNK)

    def adapter(self) -> dict[str, Tensor]:
        """The adapter's weights under the names that are saved; not copies."""
        return dict(get_peft_model_state_dict(self._peft, save_embedding_layers=False))

    def save_adapter(self, folder: Path) -> None:
        """Write PEFT's two files into ``folder``, which vLLM and PEFT read as they are; equal adapters give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.detach().contiguous() for name, weight in self.adapter().items()}, folder / ADAPTER_FILES[0], {"format": "pt"})
        config = self._peft.peft_config["default"].to_dict() | {"inference_mode": True}
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        (folder / ADAPTER_FILES[1]).write_text(json.dumps(plain, indent=1, sort_keys=True, default=str))

    def load_adapter(self, folder: Path) -> None:
        """Load the weights of a saved adapter with the same shape. Raises BadArtifact, and then nothing has changed."""
        try:
            found = load_file(folder / ADAPTER_FILES[0], device=str(self.device))
        except (OSError, SafetensorError) as error:
            raise BadArtifact(f"{folder} holds no readable adapter: {error}") from None
        wanted = {name: tuple(weight.shape) for name, weight in self.adapter().items()}
        if wanted != {name: tuple(weight.shape) for name, weight in found.items()}:
            raise BadArtifact(f"the adapter in {folder} has other names or shapes than this policy ({len(found)} tensors, {len(wanted)} expected)")
        set_peft_model_state_dict(self._peft, found)


def merged(model: Any, adapter: Path) -> Any:
    """A transformers model with a saved adapter added to its weights, without PEFT's wrappers. Raises BadArtifact when the adapter does not fit."""
    try:
        with warnings.catch_warnings(), names_as_they_are():
            warnings.filterwarnings("ignore", message=r"The following \w+_pattern keys did not match")
            return PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=True).merge_and_unload().eval()
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise BadArtifact(f"the adapter in {adapter} does not fit the base: {error}") from None


@contextmanager
def names_as_they_are() -> Iterator[None]:
    """Context in which PEFT takes targets by their names. Outside, it takes ``gate_proj`` and the like of a mixture's shared experts for those of
    routed experts in adapters of transformers 4, and silently puts the adapter there, with twice the rank."""
    convert = transformers_weight_conversion.convert_peft_config_for_transformers
    transformers_weight_conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        transformers_weight_conversion.convert_peft_config_for_transformers = convert


def _group(module_name: str) -> str:
    if SHARED in module_name:
        return "shared experts"
    return "experts" if ".experts" in module_name else "mlp" if ".mlp." in module_name else "attention"


def _recomputed(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """A function whose inner activations are not kept for the backward pass, which computes them again."""
    return recompute(forward, *inputs, use_reentrant=False, **named) if torch.is_grad_enabled() else forward(*inputs, **named)


def _innermost(module: Any) -> Any:
    """The module inside PEFT's wrappers."""
    while isinstance(module, ParamWrapper):
        module = module.base_layer
    return module


def _factor(module: Any, mesh: Mesh, made: list[Factors], settings: LearnerSettings, factored: frozenset[int]) -> set[int]:
    """Give those ``factored`` experts that carry an adapter, or are split, the forward of ``learner/kernels/expert_lora.py``; PEFT and transformers
    compute all others. Returns the ids of their adapter; its factors are added to those ``made``."""
    outer: Any = getattr(module, "experts", None)
    layers: dict[str, ParamWrapper] = {}
    experts: Any = outer
    while isinstance(experts, ParamWrapper):
        layers[experts.parameter_name] = experts
        experts = experts.base_layer
    if id(experts) not in factored or (not layers and mesh.model_size == 1):
        return set()
    adapters = {name: Factors(wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight, wrapper.scaling["default"], wrapper.num_experts)
                for name, wrapper in layers.items()}  # fmt: skip
    made += adapters.values()
    own = len(experts.gate_up_proj)
    multiply = kernel_for(experts, adapters, settings, mesh.model_rank * own, mesh.model_size * own)

    def forward(self: Any, x_TH: Tensor, chosen_TK: Tensor, weights_TK: Tensor) -> Tensor:
        adapted = {name for name, wrapper in layers.items() if not wrapper.disable_adapters}
        x_TH, weights_TK = mesh.into_split(x_TH, weights_TK)
        return mesh.out_of_split(multiply(x_TH, chosen_TK, weights_TK, adapted))

    outer.forward = types.MethodType(forward, outer)
    return {id(weight) for wrapper in layers.values() for weight in (wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight)}


def _factor_linear(module: Any, made: list[Factors]) -> None:
    """Give a linear layer with an adapter the same forward in the tokens' precision: PEFT's own turns tokens and products into float32 and back."""
    if not isinstance(module, LoraLinear) or "forward" in module.__dict__:  # learner/distributed/base_sharding.py has given it one
        return
    factors = Factors(module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"], 1)
    made.append(factors)

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.disable_adapters:
            output: Tensor = self.base_layer(x)
            return output
        ((a_RI, b_OR),) = factors.cast(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        lora = thin(rows, a_RI, b_OR)
        return product(rows, self.base_layer.weight, lora, self.base_layer.bias).view(*x.shape[:-1], -1)

    module.forward = types.MethodType(forward, module)
