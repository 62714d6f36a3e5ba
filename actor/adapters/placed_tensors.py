"""Checks that all tensors of an adapter are in effect: compares the file to the learner's export, and the engine's memory to the file.

An engine may silently skip tensors whose names it does not know (actor/adapters/vllm_cpu_lora.py describes one such case). So every tensor of the
file is looked up in the memory that the engine's layers read, and compared number by number.

Shapes: ``E`` experts (1 for a plain linear layer), ``R`` rank, ``I`` inputs, ``O`` outputs.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from streams.core.errors import BadArtifact

WEIGHTS = "adapter_model.safetensors"
EXTENSION = "actor.adapters.placed_tensors.ComparesTensors"
"""The class that vLLM adds to its workers (``--worker-extension-cls``)."""
METHOD = "tidemill_compare_tensors"
ROUNDING = 0.01
"""Relative difference that two roundings to bfloat16 can cause."""
NAMES_TOLD = 6


@dataclass(frozen=True)
class PlacedTensors:
    """The tensors of an adapter in an engine, by their names in the file."""

    same: tuple[str, ...]
    missing: tuple[str, ...]
    """Missing, or with other numbers."""
    hidden: tuple[str, ...] = ()
    """Split over several devices, so that they cannot be compared."""

    @property
    def complete(self) -> bool:
        """True when every tensor was found and equals its file."""
        return bool(self.same) and not self.missing and not self.hidden


def told(names: Sequence[str]) -> str:
    """Some of the names, short enough for a message."""
    short = [name.removeprefix("base_model.model.").removesuffix(".weight") for name in names[:NAMES_TOLD]]
    return ", ".join(short) + (f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else "")


def check_exported(folder: Path, norms: Mapping[str, float]) -> None:
    """Check that the file holds exactly the tensors that the learner exported. Raises BadArtifact with the names of those that differ.

    ``norms``: Euclidean norms by name; empty for an adapter that is older than this check.
    """
    if not norms:
        return
    try:
        found = {name: float(tensor.double().norm()) for name, tensor in load_file(folder / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise BadArtifact(f"{WEIGHTS} cannot be read: {error}") from None
    names = sorted({*norms, *found})
    differing = [name for name in names if not math.isclose(found.get(name, -1.0), norms.get(name, -1.0), rel_tol=1e-4)]
    if differing:
        raise BadArtifact(f"{len(differing)} of {len(names)} tensors differ from the learner's export: {told(differing)}")


class ComparesTensors:
    """Mixed into vLLM's worker, to read its LoRA layers."""

    model_runner: Any

    def tidemill_compare_tensors(self, adapter_id: int, folder: str) -> dict[str, list[str]]:
        """Names of the file's tensors by result: ``same``, ``missing`` or ``hidden``."""
        from vllm.lora.utils import parse_fine_tuned_lora_name

        manager = self.model_runner.lora_manager._adapter_manager
        manager.activate_adapter(adapter_id)  # another adapter may have taken its slot since
        slot = manager.lora_index_to_id.index(adapter_id)
        config = json.loads((Path(folder) / "adapter_config.json").read_bytes())
        mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
        mapper = mapper.get_rename_mapper() if mapper is not None else None
        found: dict[str, list[str]] = {"same": [], "missing": [], "hidden": []}
        for name, tensor in sorted(load_file(Path(folder) / WEIGHTS).items()):
            module, is_a = parse_fine_tuned_lora_name(name, mapper)
            places = _places(manager, module, slot)
            if places is None:
                found["hidden"].append(name)
                continue
            experts = places[0][0].shape[0] if places else 1
            wanted = _as_a(tensor, experts) if is_a else _as_b(tensor, experts) * scale_of(name, config)
            there = [pair[0] for pair in places] if is_a else [torch.cat([pair[1] for pair in places], dim=1)] if places else []
            found["same" if there and all(same_numbers(wanted, each, 1 if is_a else 2) for each in there) else "missing"].append(name)
        return found


def scale_of(name: str, config: Mapping[str, Any]) -> float:
    """The factor of an adapter's product in PEFT: alpha / rank, each from the module's pattern or the default.

    In PEFT's file, fused experts have the name of their module: gate and up are under its ``base_layer``, down under the module itself.
    """
    module = re.sub(r"\.lora_[AB]\.weight$", "", name).removeprefix("base_model.model.")
    if module.endswith(".experts.base_layer"):
        module = module.removesuffix("base_layer") + "gate_up_proj"
    elif module.endswith(".experts"):
        module += ".down_proj"

    def of(pattern: str, default: Any) -> float:
        matching = (value for key, value in (config.get(pattern) or {}).items() if re.match(rf"(.*\.)?({key})$", module))
        return float(next(matching, default))

    rank, alpha = of("rank_pattern", config["r"]), of("alpha_pattern", config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def same_numbers(wanted: Tensor, there: Tensor, rank_dimension: int) -> bool:
    """True when a slot holds these numbers, and zeros in the rest of a larger rank."""
    rank = wanted.shape[rank_dimension]
    if there.shape[rank_dimension] < rank or any(there.shape[n] != wanted.shape[n] for n in range(3) if n != rank_dimension):
        return False
    there = there.detach().cpu()
    rest = there.narrow(rank_dimension, rank, there.shape[rank_dimension] - rank)
    wanted = wanted.float()
    near_zero = 1e-3 * float(wanted.square().mean().sqrt())
    return not bool(rest.any()) and torch.allclose(there.narrow(rank_dimension, 0, rank).float(), wanted, rtol=ROUNDING, atol=near_zero)


def _as_a(tensor: Tensor, experts: int) -> Tensor:
    """PEFT's A, [E x R, I], as [E, R, I]."""
    return tensor.float().reshape(experts, -1, tensor.shape[-1])


def _as_b(tensor: Tensor, experts: int) -> Tensor:
    """PEFT's B, [O, R x E], as [E, O, R]."""
    return tensor.float().reshape(tensor.shape[0], -1, experts).permute(2, 0, 1)


def _places(manager: Any, module: str, slot: int) -> list[tuple[Tensor, Tensor]] | None:
    """The memory from which layers read that module's A, [E, R, I], and B, [E, O, R]; several are concatenated along O. Empty when no layer
    does; None when a layer holds only a part."""
    from vllm.lora.layers import FusedMoEWithLoRA

    experts = manager.modules.get(module.removesuffix(".base_layer"))
    if isinstance(experts, FusedMoEWithLoRA):
        if experts.tp_size > 1 or experts.use_ep:
            return None
        is_gate_up = module.endswith(".base_layer")
        a, b = (experts.w13_lora_a_stacked, experts.w13_lora_b_stacked) if is_gate_up else (experts.w2_lora_a_stacked, experts.w2_lora_b_stacked)
        return [(a_SERI[slot], b_SEOR[slot]) for a_SERI, b_SEOR in zip(a, b, strict=True)]
    layer, part = manager.modules.get(module), 0
    for packed, names in manager.packed_modules.items():
        if module in names:
            layer, part = manager.modules.get(packed), names.index(module)
    if layer is None:
        return []
    if isinstance(layer, FusedMoEWithLoRA) or layer.tp_size > 1:
        return None
    return [(layer.lora_a_stacked[part][slot], layer.lora_b_stacked[part][slot])]
