"""Reads an adapter's files before the engine does, and says in one sentence why one cannot be served here.

Adapters come from the learner or from elsewhere. What counts is what the file holds: ``target_modules`` may be a list, a pattern or whole paths, so
each tensor's own name is read. Only the header of the file is read, no numbers.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from actor.adapters.placed_tensors import WEIGHTS
from reward.families.model_family import ATTENTION, ModelFamily
from streams.core.errors import BadArtifact
from streams.core.events import AdapterVersion

CONFIG = "adapter_config.json"
MOST_NAMES = 3
PLAIN = "train it as plain LoRA"
UNSERVED_FIELDS: dict[str, str] = {
    "use_dora": f"vLLM has no DoRA: {PLAIN}, or merge it into its base",
    "lora_bias": f"vLLM adds no biases: {PLAIN}",
    "modules_to_save": "whole modules beside LoRA are not served: train with modules_to_save = null",
    "trainable_token_indices": "changed embeddings are not served: train with trainable_token_indices = null",
    "fan_in_fan_out": "its weights are transposed: train on a base with linear layers",
    "alora_invocation_tokens": f"vLLM has no aLoRA: {PLAIN}",
    "layer_replication": "repeated layers are not served: train with layer_replication = null",
    "use_qalora": f"vLLM has no QALoRA: {PLAIN}",
    "use_bdlora": f"vLLM has no block-diagonal LoRA: {PLAIN}",
}
"""Fields of ``adapter_config.json`` that make an adapter more than a product of two matrices, and what to do."""
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""Values of ``init_lora_weights`` that change the base's weights when PEFT loads the adapter."""
TENSOR = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])\.weight$")
OF_ANOTHER_NAME = re.compile(r"\.lora_[AB]\.(?P<adapter>[^.]+)\.weight$")
ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
EMBEDDINGS = ("embed_tokens", "lm_head", "lora_embedding")


class Ranks(NamedTuple):
    """Ranks in an adapter's configuration."""

    own: int
    largest: int


def check_shape(folder: Path, adapter: AdapterVersion, family: ModelFamily | None, max_rank: int) -> None:
    """Check that the adapter is plain LoRA, of the rank that its event says, on modules that this replica serves. ``family``: the base's; of an
    unknown one attention alone is served. Raises BadArtifact."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        ranks = _ranks(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadArtifact(f"{adapter.name}: {CONFIG} cannot be read: {error!r}") from None
    if problem := unserved_field(config):
        raise BadArtifact(f"{adapter.name}: {problem}")
    if ranks.own != adapter.rank or not 1 <= ranks.own <= ranks.largest <= max_rank:
        raise BadArtifact(
            f"{adapter.name} has rank {ranks.own} (up to {ranks.largest}), its event says {adapter.rank}, actor.max_rank = {max_rank}"
            + (": raise actor.max_rank" if ranks.largest > max_rank else "")
        )
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt") for path in folder.glob(pattern))
        instead = f" but {pickled[0]}, a pickle that nothing here opens: save it with PEFT's safe_serialization" if pickled else ""
        raise BadArtifact(f"{adapter.name} has no {WEIGHTS}{instead}")
    if problem := unserved_tensor(_shapes(folder, adapter.name), family, max_rank):
        raise BadArtifact(f"{adapter.name}: {problem}")


def unserved_field(config: Mapping[str, Any]) -> str | None:
    """The first field of an adapter's configuration that makes it more than plain LoRA, and what to do; None when there is none."""
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        return f"{CONFIG}: peft_type = {kind!r} is not LoRA: {PLAIN}"
    if (bias := config.get("bias") or "none") != "none":
        return f"{CONFIG}: bias = {bias!r}: trained biases are not served: train with bias = 'none'"
    for field, advice in UNSERVED_FIELDS.items():
        if value := config.get(field):
            return f"{CONFIG}: {field} = {str(value)[:80]}: {advice}"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_THE_BASE):
        return f"{CONFIG}: init_lora_weights = {init!r} changes the base: convert it with PEFT's path_initial_model_for_weight_conversion"
    return None


def unserved_tensor(shapes: Mapping[str, tuple[int, ...]], family: ModelFamily | None, max_rank: int) -> str | None:
    """Why the file's tensors cannot all be served, with the names of some; None when they can."""
    if not shapes:
        return f"{WEIGHTS} holds no tensor"
    served = set(ATTENTION if family is None else family.lora_modules)
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in sorted(shapes.items()):
        if problem := _unserved_name(name):
            return problem
        if (parsed := TENSOR.match(name)) is None:
            return f"{WEIGHTS}: {name} is no factor of LoRA (lora_A or lora_B): {PLAIN}"
        module, factor = parsed["module"], parsed["factor"]
        last = module.removesuffix(".base_layer").rpartition(".")[2]
        if reason := (family.vllm.unserved if family else {}).get(last):
            return f"{WEIGHTS}: {name}: {reason}; leave {last} out of target_modules"
        if last not in served or (module.endswith(".base_layer") and last != "experts"):
            kind = f"a {family.name}" if family else "a base of an unknown family"
            return f"{WEIGHTS}: {name}: this replica serves LoRA on {', '.join(sorted(served))} of {kind}; leave {last} out of target_modules"
        found.setdefault(module, {})[factor] = shape
        experts = last == "experts"
        if not experts and factor == "A" and shape and shape[0] > max_rank:
            return f"{WEIGHTS}: {name} has rank {shape[0]}, actor.max_rank = {max_rank}: raise it"
    if alone := [module for module, factors in found.items() if len(factors) == 1]:
        return f"{WEIGHTS}: {_some(alone)} has lora_A or lora_B alone: save the adapter again"
    of_experts = {module for module in found if module.removesuffix(".base_layer").endswith(".experts")}
    whole = {module.removesuffix(".base_layer") for module in of_experts}
    if lacking := sorted({f"{module}{part}" for module in whole for part in ("", ".base_layer")} - of_experts):
        which = "gate_up_proj" if lacking[0].endswith(".base_layer") else "down_proj"
        return f"{WEIGHTS}: {_some(lacking)} ({which}) is missing: vLLM needs both of the experts' parameters, train on gate_up_proj and down_proj"
    return None


def _unserved_name(name: str) -> str | None:
    if "lora_magnitude_vector" in name:
        return f"{WEIGHTS}: {name} belongs to DoRA: {UNSERVED_FIELDS['use_dora']}"
    if any(part in name for part in EMBEDDINGS):
        return f"{WEIGHTS}: {name} changes embeddings or output head, which are not served: train without new tokens and without these modules"
    if other := OF_ANOTHER_NAME.search(name):
        return f"{WEIGHTS}: {name} is named as in memory, with the adapter's name {other['adapter']!r}: save it with PEFT's save_pretrained"
    if ONE_EXPERT.search(name):
        return (
            f"{WEIGHTS}: {name} is of one expert, as PEFT named them before transformers 5: train it anew with target_parameters, all experts in one"
        )
    if ".lora_" not in name:
        return f"{WEIGHTS}: {name} is a whole weight or bias: train with bias = 'none' and modules_to_save = null"
    return None


def _ranks(config: Mapping[str, Any]) -> Ranks:
    rank = config["r"]
    return Ranks(rank, max([rank, *(config.get("rank_pattern") or {}).values()]))


def _shapes(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError) as error:
        raise BadArtifact(f"{name}: {WEIGHTS} cannot be read: {error}") from None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(name.removeprefix("base_model.model.") for name in sorted(names)[:MOST_NAMES]) + more
