"""Loads a base for training, and compares what the learner would compute of it with what transformers computes, before anything is trained.

Attention on packed rows (``attention.py``) and experts in factored form (``expert_lora.py``) stand in for transformers' own code. Whether they are
the same function is not taken from a name: both are run on random inputs. Experts that differ are left to transformers (slower, and right); a
forward pass that differs is an error. Shapes: ``T`` tokens, ``H`` hidden, ``K`` experts per token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from learner.kernels.attention import ATTENTION
from learner.kernels.expert_lora import FrozenStack, experts_forward
from learner.models.compute_settings import ComputeSettings
from learner.models.sequence_packing import Branches, Packed, pack
from reward.families.base_folder import BaseFolder, read_base
from reward.families.known_families import family_names
from reward.families.model_family import ModelFamily
from streams.core.errors import ConfigError

LAYER_KINDS = {"full_attention", "sliding_attention"}
"""Kinds of attention that a packed row's mask can say."""
BYTES = {"bfloat16": 2, "float32": 4}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest relative difference of the median token: another function differs by more, another order of summing by less."""
INPUT_SCALES = (1.0, 30.0)
"""Of experts: large inputs too, so that a clamped activation shows."""
log = structlog.get_logger()


@dataclass(frozen=True)
class LoadedBase:
    """A base as transformers has it, with the learner's attention."""

    model: Any
    facts: BaseFolder
    factored: frozenset[int]
    """Ids of the experts' modules that the factored forward computes as they do themselves."""

    left: int
    """Layers whose experts are left to transformers and PEFT."""

    @property
    def rounds_experts(self) -> bool:
        """True when an adapter on experts would be rounded together with their weights."""
        return self.left > 0 and self.model.dtype != torch.float32

    @property
    def family(self) -> ModelFamily | None:
        """None when the architecture is not known."""
        return self.facts.family


def load_base(base: Path, settings: ComputeSettings) -> LoadedBase:
    """Load and compare. Raises ConfigError for a base that transformers cannot load or that the learner would not compute rightly."""
    facts = read_base(base)
    facts.check_memory(BYTES[settings.precision], f"learner.dtype = {settings.dtype}")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(base), config=_config(facts), dtype=getattr(torch, settings.precision), attn_implementation=ATTENTION, local_files_only=True
        ).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        known = f"known families are {family_names()}" if facts.family is None else f"it says that it is {facts.model_type}"
        raise ConfigError(f"{base}: transformers cannot load it as a language model ({_first_line(error)}); {known}") from None
    _check_parts(model, facts)
    factored = frozenset(id(module) for module in model.modules() if is_fused(module) and computes_the_same(module))
    left = sum(is_fused(module) for module in model.modules()) - len(factored)
    if left:
        model.set_experts_implementation("eager")  # the others round tokens to the weights' precision, in a float32 pass too
        log.info("experts_left_to_transformers", base=str(base), model_type=facts.model_type, layers=left)
    check_forward(model, facts)
    return LoadedBase(model, facts, factored, left)


def is_fused(experts: Any) -> bool:
    """True for the experts of one layer in transformers' layout: all in one parameter for each projection."""
    return isinstance(experts, torch.nn.Module) and {"gate_up_proj", "down_proj"} <= {name for name, _ in experts.named_parameters(recurse=False)}


@torch.no_grad()
def computes_the_same(experts: Any) -> bool:
    """True when the factored forward gives the outputs of this module: compared on random tokens, small and large, and experts."""
    gate_up, down = experts.gate_up_proj, experts.down_proj
    others = {name for name, _ in experts.named_parameters()} - {"gate_up_proj", "down_proj"}
    if others or gate_up.dim() != 3 or down.dim() != 3 or (gate_up.shape[1], gate_up.shape[2]) != (2 * down.shape[2], down.shape[1]):
        return False
    chance = torch.Generator().manual_seed(0)
    count = gate_up.shape[0]
    chosen_TK = torch.stack([torch.arange(8) % count, (torch.arange(8) + 1) % count], dim=1)[:, : min(2, count)].to(gate_up.device)
    weights_TK = torch.rand(chosen_TK.shape, generator=chance).to(gate_up.device, gate_up.dtype)
    for scale in INPUT_SCALES:
        x_TH = (torch.randn(len(chosen_TK), gate_up.shape[2], generator=chance) * scale).to(gate_up.device, gate_up.dtype)
        try:
            theirs_TH = experts(x_TH, chosen_TK, weights_TK)
            ours_TH = experts_forward(x_TH, chosen_TK, weights_TK, FrozenStack(gate_up, False), FrozenStack(down, False), experts.act_fn, None, None)
        except (TypeError, AttributeError, RuntimeError, ValueError, IndexError):  # it is called in another way, or has no such parts
            return False
        if not _same(ours_TH, theirs_TH):
            return False
    return True


@torch.no_grad()
def check_forward(model: Any, facts: BaseFolder) -> None:
    """Compare the states of packed outputs with those of each sequence alone under transformers' own attention. Raises ConfigError."""
    chance = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(facts.head_rows, (size,), generator=chance).tolist()) for size in (6, 4, 3)]
    packed = pack([Branches(ids[0], (ids[1], ids[2]))], 0, model.device)
    ours_KH = packed_states(model, packed)
    model.set_attn_implementation("eager")
    try:
        alone = [model.model(input_ids=torch.tensor([ids[0] + own], device=model.device), use_cache=False).last_hidden_state[0] for own in ids[1:]]
    finally:
        model.set_attn_implementation(ATTENTION)
    theirs_KH = torch.cat([states_TH[len(ids[0]) - 1 : -1] for states_TH in alone])
    if not _same(ours_KH, theirs_KH):
        raise ConfigError(
            f"{facts.folder}: a {facts.model_type} computes something else in the learner than in transformers (median difference "
            f"{_difference(ours_KH, theirs_KH):.2g}), so it would be trained wrongly; families that are known to agree: {family_names()}"
        )


def packed_states(model: Any, packed: Packed) -> Tensor:
    """The states that a packed pass predicts output tokens from, [K, H]."""
    windowed: dict[str, Any] = {"packed_RN": packed.positions_RN} if getattr(model.config, "sliding_window", None) else {}
    if packed.causal:
        windowed["causal"] = True
    hidden_RNH: Tensor = model.model(
        input_ids=packed.ids_RN,
        attention_mask=packed.visible_RNN[:, None],
        position_ids=packed.positions_RN,
        use_cache=False,
        layout=packed.layout,
        **windowed,
    ).last_hidden_state
    return hidden_RNH.flatten(0, 1)[packed.source_K]


def _config(facts: BaseFolder) -> Any:
    """None, so that transformers reads it; or, of a model that goes by another name for the same architecture, its configuration under the first."""
    family = facts.family
    if family is None or facts.model_type == family.model_types[0]:
        return None
    named = {key: value for key, value in facts.config.items() if key not in ("model_type", "auto_map", "architectures")}
    return AutoConfig.for_model(family.model_types[0], **named)


def _check_parts(model: Any, facts: BaseFolder) -> None:
    parts = {name for name, _ in model.named_children()}
    if not {"model", "lm_head"} <= parts or "layers" not in {name for name, _ in model.model.named_children()}:
        raise ConfigError(
            f"{facts.folder}: a {facts.model_type} is not built as a decoder with an output head (model.layers, lm_head), which the learner needs; "
            f"known families are {family_names()}"
        )
    if strange := sorted(set(getattr(model.config, "layer_types", None) or ()) - LAYER_KINDS):
        raise ConfigError(
            f"{facts.folder}: a {facts.model_type} has layers of {strange[0]}, whose masks the learner cannot make; "
            f"known families are {family_names()}"
        )


def _difference(ours_TH: Tensor, theirs_TH: Tensor) -> float:
    """Relative difference of the median token: near ties of a router may send a token or two elsewhere."""
    ours, theirs = ours_TH.float(), theirs_TH.float()
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-12)).median())


def _same(ours_TH: Tensor, theirs_TH: Tensor) -> bool:
    return ours_TH.shape == theirs_TH.shape and _difference(ours_TH, theirs_TH) <= TOLERANCE[ours_TH.dtype]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
