"""The benchmark of one GPU starts, runs and tells its figures, on a CPU too."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_gpu_benchmark_runs_at_a_tiny_shape_on_a_cpu(tiny_base: Path, tmp_path: Path) -> None:
    options = [
        "--shape",
        "tiny",
        "--device",
        "cpu",
        "--tokens",
        "96",
        "--updates",
        "1",
        "--tokenizer",
        str(tiny_base),
        "--out",
        str(tmp_path / "gpu.json"),
    ]
    subprocess.run([sys.executable, "-m", "benchmarks.gpu", *options], check=True, cwd=ROOT, timeout=300)
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert (told["shape"], told["device"], told["tokens"]) == ("tiny", "cpu", 96)
    assert told["tokens_per_s"] > 0
    assert "ratios" not in told  # a CPU's figures are not set beside an H100's
