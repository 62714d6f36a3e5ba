"""vLLM serves an adapter of each family as plain PEFT computes it, and samples rollouts with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_families_served import check
from tests.integration.test_rollout_engines import SCRIPT
from tests.support.family_serving import serve
from tests.support.tiny_models import tiny_model

GROUPS = {
    "gpt_oss": ["attention", "experts"], "mixtral": ["attention", "experts"],
    "llama": ["attention", "mlp"], "mistral": ["attention", "mlp"], "qwen2": ["attention", "mlp"], "qwen3": ["attention", "mlp"],
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(GROUPS))
def test_an_adapter_on_all_that_the_family_has_is_served_whole(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    found = serve(kind, tiny_base, tmp_path)
    check(found)
    assert found["groups"] == GROUPS[kind]


@pytest.mark.parametrize("kind", ["qwen3_moe", "olmoe", "qwen2"])
def test_rollouts_in_the_trainers_process_have_the_trainers_logprobs(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    base, out = tiny_model(kind, tmp_path / "base", tiny_base), tmp_path / "found.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-P", "-c", SCRIPT, str(base), str(out)], check=True, timeout=550, env=environment)
    found = json.loads(out.read_text())
    assert set(found) == {"vllm-1", "vllm-2", "transformers-1", "transformers-2"}
    for run in found.values():
        assert run["gap"] < 1e-3
        assert run["base_gap"] > 0.02
