"""A ring that does not fit is refused before it starts, with the parts that are too large and what makes them smaller."""

import json
import stat
from pathlib import Path

import pytest

from infra.planner.machine_memory import GpuMemory, MachineMemory, control_group_room, gpus
from infra.planner.memory_arithmetic import GIB
from infra.planner.ring_memory import check_memory, missing_gpu, needs_of
from infra.settings.config import load
from streams.core.errors import ConfigError

H100 = GpuMemory("NVIDIA H100 80GB HBM3", 81_559 << 20, 81_000 << 20)
SHAPES = Path(__file__).parents[3] / "infra/planner/shapes"


def base_like(name: str, folder: Path) -> Path:
    """A folder with the configuration of a published model, and a small dense one for the features; no weights."""
    (folder / "dense").mkdir(parents=True)
    config = json.loads((SHAPES / f"{name}.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    dense = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
             "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip
    (folder / "dense/config.json").write_text(json.dumps(dense))
    return folder


def test_what_does_not_fit_is_refused_with_its_parts_and_a_remedy() -> None:
    settings = load(None, ("policy.base=smollm2", "actor.kv_cache_gib=40"), {})
    with pytest.raises(ConfigError) as caught:
        check_memory(settings, MachineMemory(16 * GIB))
    told = str(caught.value)
    assert "GiB of 16.0 free on this machine, of which: actor's key-value cache 40.0" in told
    assert "Make smaller: actor.kv_cache_gib" in told
    assert "refuse_too_large = false" in told
    assert check_memory(settings, MachineMemory(64 * GIB))
    assert check_memory(settings.model_copy(update={"refuse_too_large": False}), MachineMemory(16 * GIB))[0].fits is False


@pytest.mark.parametrize(("override", "part"), [
    ("actor.dtype=float32", "actor's weights"), ("learner.dtype=float32", "learner's weights"), ("actor.max_rank=64", "actor's room for adapters"),
    ("learner.rank=64", "learner's adapter and optimizer"), ("learner.max_output_tokens=512", "a training pass"),
    ("learner.samples_per_prompt=32", "rollouts"), ("learner.sample_ahead=true", "learner's weights"),
    ("actor.max_loras=8", "actor's room for adapters"), ("reward.dtype=float32", "reward features"), ("policy.experts=16", "actor's packed experts"),
])  # fmt: skip
def test_a_setting_that_costs_memory_costs_it_here(override: str, part: str) -> None:
    def of(overrides: tuple[str, ...]) -> int:
        (need,) = needs_of(load(None, overrides, {}), MachineMemory(64 * GIB))
        return next((each.bytes for each in need.parts if each.name == part), 0)

    assert of((override,)) > of(())


def test_a_base_without_a_model_for_the_features_is_told_which_setting_names_one(tmp_path: Path) -> None:
    base = base_like("olmoe-1b-7b", tmp_path / "base")
    (base / "dense/config.json").unlink()
    with pytest.raises(ConfigError, match=r"Name its folder as reward.backbone"):
        needs_of(load(None, (f"policy.base={base}",), {}), MachineMemory(64 * GIB))


def test_recomputing_activations_makes_a_training_pass_smaller() -> None:
    def total(*overrides: str) -> int:
        return needs_of(load(None, ("learner.max_output_tokens=512", *overrides), {}), MachineMemory(64 * GIB))[0].total_bytes

    assert total("learner.recompute_activations=true") < total()


def test_a_learner_elsewhere_and_a_cluster_of_kafka_take_nothing_here() -> None:
    (alone,) = needs_of(load(None, (), {}), MachineMemory(64 * GIB))
    (apart,) = needs_of(load(None, ("learner.ray_address=ray://a:1", "kafka.bootstrap_servers=b:9092"), {}), MachineMemory(64 * GIB))
    assert {part.name for part in alone.parts} - {part.name for part in apart.parts} >= {"learner's weights", "learner's process", "Kafka's process"}


def test_the_base_of_a_huge_model_is_refused_on_one_gpu(tmp_path: Path) -> None:
    settings = load("gpu", (f"policy.base={base_like('qwen3-235b-a22b', tmp_path / 'base')}",), {})
    engine, gpu, _ = needs_of(settings, MachineMemory(512 * GIB, (H100,)), actor_on_gpu=True)
    assert not engine.fits
    assert not gpu.fits
    assert max(engine.parts, key=lambda part: part.bytes).name == "weights"
    assert "--quantization or --tensor-parallel-size" in engine.remedies


@pytest.mark.parametrize("name", ["qwen3-4b", "olmoe-1b-7b"])
def test_the_shipped_configuration_for_one_gpu_fits_on_80_gb(name: str, tmp_path: Path) -> None:
    settings = load("gpu", (f"policy.base={base_like(name, tmp_path / 'base')}",), {})
    engine, gpu, ram = needs_of(settings, MachineMemory(128 * GIB, (H100,)), actor_on_gpu=True)
    assert engine.fits, str(engine)
    assert gpu.fits, str(gpu)
    assert ram.fits, str(ram)
    assert gpu.total_bytes < 0.9 * gpu.have_bytes  # what the arithmetic does not know must find room too
    cache = engine.have_bytes - engine.total_bytes
    assert cache > 4 * GIB  # more than one answer at a time


def test_every_key_of_the_configuration_for_one_gpu_is_a_setting_that_differs_or_is_said_on_purpose() -> None:
    settings = load("gpu", (), {})
    learner, actor = settings.learner, settings.actor
    assert learner.ray_num_gpus == 1
    assert learner.engine == "actor"  # the base lies there twice, not three times
    assert actor.max_rank >= max(learner.rank, learner.expert_rank)
    assert learner.max_prompt_tokens + learner.max_output_tokens <= actor.max_model_tokens
    assert learner.prompts_per_step * learner.samples_per_prompt <= actor.max_concurrent
    assert learner.checkpoint_every == learner.publish_every > 1
    assert learner.publish_every - 1 <= learner.max_policy_lag


def test_a_gpu_that_is_wanted_and_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    settings, without = load("gpu", (), {}), MachineMemory(128 * GIB)
    with pytest.raises(ConfigError, match=r"learner.ray_num_gpus = 1, but this machine has no NVIDIA GPU"):
        check_memory(settings, without)
    on_cpu = load("gpu", ("learner.ray_num_gpus=0",), {})
    with pytest.raises(ConfigError, match=r"reward.device = cuda, but this machine has no NVIDIA GPU"):
        check_memory(on_cpu, without)
    elsewhere = load("gpu", ("learner.ray_address=ray://a:1", "reward.device=cpu"), {})
    assert missing_gpu(elsewhere, without) is missing_gpu(settings, MachineMemory(128 * GIB, (H100,))) is None
    assert missing_gpu(settings, MachineMemory(128 * GIB, has_driver=True)) is None  # a container without NVIDIA's tool


def test_the_engine_must_find_room_within_its_part(tmp_path: Path) -> None:
    base = base_like("qwen3-4b", tmp_path / "base")
    machine = MachineMemory(128 * GIB, (H100,))

    def engine(*overrides: str) -> bool:
        return needs_of(load("gpu", (f"policy.base={base}", *overrides), {}), machine, actor_on_gpu=True)[0].fits

    assert engine("actor.gpu_memory_ratio=0.4")
    assert not engine("actor.gpu_memory_ratio=0.12")
    assert not engine("actor.gpu_memory_ratio=0.4", "actor.max_model_tokens=1000000")


def test_without_a_gpu_for_the_engine_it_counts_against_the_machine(tmp_path: Path) -> None:
    settings = load("gpu", ("policy.base=smollm2", "learner.ray_num_gpus=0", "reward.device=cpu"), {})
    (need,) = needs_of(settings, MachineMemory(64 * GIB, (H100,)), actor_on_gpu=False)
    assert need.place == "this machine"


@pytest.mark.parametrize(("printed", "status", "expected"), [
    ("NVIDIA H100 80GB HBM3, 81559, 81000\n", 0, (H100,)), ("", 0, ()), ("Failed to initialize NVML\n", 9, ()), ("No devices were found\n", 0, ()),
])  # fmt: skip
def test_gpus_are_as_nvidias_tool_tells_them(tmp_path: Path, printed: str, status: int, expected: tuple[GpuMemory, ...]) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{printed}'\nexit {status}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    assert gpus(str(tool)) == expected
    assert gpus(str(tmp_path / "nowhere")) == ()


def test_the_room_in_a_container_is_its_own_and_its_parents(tmp_path: Path) -> None:
    own, groups = tmp_path / "own", tmp_path / "groups"
    inner = groups / "outer/inner"
    inner.mkdir(parents=True)
    own.write_text("0::/outer/inner\n")
    for folder, limit, used in ((inner, "max", 1), (inner.parent, str(8 * GIB), 3 * GIB)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\nactive_file {GIB}\ninactive_file {GIB}\n")
    assert control_group_room(groups, own) == 7 * GIB  # what caches files can be given back
    own.write_text("0::/elsewhere\n")
    assert control_group_room(groups, own) > 1 << 60
    assert control_group_room(groups, tmp_path / "nowhere") > 1 << 60
