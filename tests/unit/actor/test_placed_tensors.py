"""Every tensor of an adapter is looked up where the engine's layers read it: one that is not there, or not as it was, is named."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actor.adapters.placed_tensors import WEIGHTS, PlacedTensors, check_exported, same_numbers, scale_of, told
from learner.models.lora_policy import Policy
from learner.settings import LearnerSettings
from streams.core.errors import BadArtifact

ATTENTION = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
EXPERTS = "base_model.model.model.layers.0.mlp.experts"


def exported(folder: Path) -> dict[str, float]:
    tensors = {ATTENTION: torch.randn(8, 4), f"{EXPERTS}.lora_B.weight": torch.randn(8, 16)}
    save_file(tensors, folder / WEIGHTS)
    return {name: float(tensor.double().norm()) for name, tensor in tensors.items()}


def test_a_file_as_the_learner_exported_it_passes(tmp_path: Path) -> None:
    check_exported(tmp_path, exported(tmp_path))


@pytest.mark.parametrize("fault", ["emptied", "dropped", "added", "doubled"])
def test_a_file_that_is_not_as_the_learner_exported_it_is_refused_by_the_names_that_differ(tmp_path: Path, fault: str) -> None:
    norms = exported(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    if fault == "dropped":
        del tensors[ATTENTION]
    elif fault == "added":
        tensors["base_model.model.another.lora_B.weight"] = torch.ones(2, 2)
    else:
        tensors[ATTENTION] *= 0 if fault == "emptied" else 2
    save_file(tensors, tmp_path / WEIGHTS)
    named = "another.lora_B" if fault == "added" else "model.layers.0.self_attn.q_proj.lora_B"
    with pytest.raises(BadArtifact, match=f"1 of {3 if fault == 'added' else 2} tensors differ from the learner's export: {named}$"):
        check_exported(tmp_path, norms)


def test_adapters_from_before_norms_were_stored_are_not_asked_for_them_and_unreadable_files_are_bad(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    check_exported(tmp_path, {})
    with pytest.raises(BadArtifact, match="cannot be read"):
        check_exported(tmp_path, {ATTENTION: 1.0})


def test_the_scale_of_each_tensor_is_the_one_that_the_learner_multiplies_by(tiny_base: Path, tmp_path: Path) -> None:
    Policy(tiny_base, LearnerSettings(dtype="float32", rank=8, alpha=12, expert_rank=4)).save_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {scale_of(name, config) for name in load_file(tmp_path / WEIGHTS)} == {1.5}  # as without a rank of their own for experts
    plain = {"r": 8, "lora_alpha": 16}
    assert scale_of(ATTENTION, plain) == 2
    assert scale_of(ATTENTION, plain | {"use_rslora": True}) == 16 / math.sqrt(8)
    patterns = plain | {"rank_pattern": {"mlp.experts.down_proj": 2}, "alpha_pattern": {"mlp.experts.gate_up_proj": 24}}
    assert scale_of(f"{EXPERTS}.lora_A.weight", patterns) == 8
    assert scale_of(f"{EXPERTS}.base_layer.lora_A.weight", patterns) == 3
    assert scale_of(ATTENTION, patterns) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slot_holds_the_numbers_of_its_rank_and_zeros_beside_them(dtype: torch.dtype) -> None:
    wanted = torch.randn(2, 6, 4) * 1e-3
    slot = torch.zeros(2, 6, 8, dtype=dtype)
    slot[..., :4] = wanted
    assert same_numbers(wanted, slot, 2)
    assert not same_numbers(2 * wanted, slot, 2)
    assert not same_numbers(wanted, torch.zeros_like(slot), 2)
    assert not same_numbers(wanted, slot[:, :5], 2)
    assert not same_numbers(wanted, slot[..., :3], 2)
    one = slot.clone()
    one[1, 3, 2] += 1e-3
    assert not same_numbers(wanted, one, 2)
    rest = slot.clone()
    rest[0, 0, 7] = 1
    assert not same_numbers(wanted, rest, 2)


def test_only_all_of_an_adapter_is_complete() -> None:
    assert PlacedTensors(("a",), ()).complete
    assert not PlacedTensors((), ()).complete
    assert not PlacedTensors(("a",), ("b",)).complete
    assert not PlacedTensors(("a",), (), ("c",)).complete
    assert told([f"base_model.model.layers.{n}.lora_A.weight" for n in range(8)]).endswith("layers.5.lora_A and 2 more")
