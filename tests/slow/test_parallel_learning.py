"""Many processes learn as one does: data parallel, and the base split over them, on gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learner.distributed.process_mesh import ALONE, Mesh

ROOT = Path(__file__).parents[2]
LAYOUTS = {"2 rows": (2, 1), "a base split in 2": (1, 2), "2 rows of a base split in 2": (2, 2), "a base split in 4": (1, 4)}


@pytest.fixture(scope="module")
def out(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("parallel_steps.py")), str(tiny_base), str(folder)]
    subprocess.run(command, check=True, timeout=500, env=environment)
    return folder


def told(out: Path, rows: int, columns: int, rank: int) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    name = f"{rows}x{columns}-{rank}"
    return json.loads((out / f"{name}.json").read_text()), load_file(out / f"{name}.safetensors")


@pytest.mark.parametrize(("rows", "columns"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_loss_gradients_and_adapter_are_those_of_one_process(out: Path, rows: int, columns: int) -> None:
    alone, alone_tensors = told(out, 1, 1, 0)
    figures = ("loss", "kl_nats", "entropy_nats", "gradient_norm", "engine_ratio_mean", "effective_sample_ratio", "reward_mean", "train_tokens")
    for rank in range(rows * columns):
        found, tensors = told(out, rows, columns, rank)
        for step in (0, 1):
            for figure in figures:
                assert found["metrics"][step][figure] == pytest.approx(alone["metrics"][step][figure], rel=1e-5, abs=1e-6), (step, figure)
        assert tensors.keys() == alone_tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, alone_tensors[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert any(bool(tensor.abs().max() > 1e-3) for name, tensor in tensors.items() if name.startswith("gradient/"))


def test_all_processes_hold_the_same_adapter_bit_for_bit(out: Path) -> None:
    for rows, columns in LAYOUTS.values():
        _, first = told(out, rows, columns, 0)
        for rank in range(1, rows * columns):
            _, other = told(out, rows, columns, rank)
            assert all(torch.equal(first[name], other[name]) for name in first)


def test_a_split_base_is_held_in_parts_and_samples_what_the_whole_one_does(out: Path) -> None:
    whole, _ = told(out, 1, 1, 0)
    for columns in (2, 4):
        parts = [told(out, 1, columns, rank)[0]["base_weights"] for rank in range(columns)]
        assert len(set(parts)) == 1
        assert whole["base_weights"] - parts[0] >= (1 - 1 / columns) * 2 * 4 * 3 * 64 * 128  # layers x experts x projections
    first, second = (told(out, 1, 2, rank)[0]["sampled"] for rank in (0, 1))
    assert first == second  # were one token another, the two would wait for each other for ever
    same = sum(one == other for one, other in zip(first, whole["sampled"], strict=True))
    assert same >= len(first) - 3  # a draw at the edge between two tokens may fall to the other side, by rounding


def test_shares_cover_the_work_once_however_it_divides() -> None:
    for size in (1, 2, 3, 4):
        shares = [Mesh(data_rank=rank, data_size=size).share(range(7)) for rank in range(size)]
        assert [item for share in shares for item in share] == list(range(7))
    with pytest.raises(ValueError, match="7 cannot be split over 2"):
        Mesh(model_size=2).part(7)
    assert ALONE.leads
    assert not Mesh(model_rank=1, model_size=2).leads
