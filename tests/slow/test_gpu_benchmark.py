"""The benchmark of one GPU starts, runs and tells its figures, on a CPU too; and what it needs beside torch and transformers is carried with it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_wheels import NEEDED, requirements

ROOT = Path(__file__).parents[2]
THERE = {"torch", "transformers", "safetensors", "tokenizers", "numpy"}
"""On every machine with torch and transformers."""


def test_the_gpu_benchmark_runs_at_tiny_shapes_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = ["--shapes", "tiny", "tiny-mixture", "--device", "cpu", "--tokens", "96", "--updates", "1", "--out", str(out)]
    subprocess.run([sys.executable, "-P", "-m", "benchmarks.gpu", *options], check=True, cwd=ROOT, timeout=400, env=_environment())
    told = json.loads(out.read_text())
    assert (told["device"], told["left_out"]) == ("cpu", [])
    assert [row["shape"] for row in told["updates"]] == [row["shape"] for row in told["steps"]] == ["tiny", "tiny-mixture"]
    assert all(row["tokens_per_s"] > 0 and "ratios" not in row for row in told["updates"])  # a CPU's figures are not set beside an H100's
    for row in told["kernels"]:
        exact = row["dtype"] == "float32"
        assert row["largest_logprob_gap"] < (1e-4 if exact else 0.2), row
        assert row["least_cosine"] > (0.9999 if exact else 0.99), row
        assert row["median_error"] < (1e-3 if exact else 0.03), row


def test_without_time_it_leaves_out_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = ["--shapes", "tiny", "--device", "cpu", "--minutes", "0", "--out", str(out)]
    subprocess.run([sys.executable, "-P", "-m", "benchmarks.gpu", *options], check=True, cwd=ROOT, timeout=400, env=_environment())
    assert json.loads(out.read_text())["left_out"] == ["updates of tiny: no time", "a step of tiny: no time"]


def test_all_that_it_imports_is_on_a_bare_machine_or_among_the_wheels() -> None:
    script = "import sys, benchmarks.gpu; print(*(m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)))"
    done = subprocess.run([sys.executable, "-P", "-c", script], check=True, cwd=ROOT, timeout=400, capture_output=True, text=True, env=_environment())
    own = {path for path in map(Path, done.stdout.split()) if ROOT in path.parents and ".venv" not in path.parts}
    assert len(own) > 20
    imported = {name.split(".")[0] for path in own for name in _imports(path)} - set(sys.stdlib_module_names)
    carried = {name.replace("-", "_") for name in NEEDED}
    assert imported - THERE - carried - {"benchmarks", "streams", "reward", "learner"} == set()
    assert all("==" in requirement for requirement in requirements())


def _imports(path: Path) -> list[str]:
    """Names of the modules that a file imports when it is imported itself."""
    found: list[str] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
