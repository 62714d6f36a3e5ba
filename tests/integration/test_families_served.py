"""vLLM serves an adapter of each family as plain PEFT computes it: here two mixtures, all others in tests/slow/test_all_families_served.py."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.family_serving import serve


def check(found: dict[str, Any]) -> None:
    assert found["missing"] == []
    assert len(found["same"]) == found["exported"]
    assert found["base_gap"] < 1e-3  # float32
    assert found["prompt_gap"] < 1e-3
    assert found["decoded_gap"] < 1e-3
    assert found["step"] > 0.05, "an adapter that says nothing proves nothing"


@pytest.mark.parametrize("kind", ["qwen3_moe", "olmoe"])
def test_an_adapter_on_attention_and_experts_is_served_whole(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    found = serve(kind, tiny_base, tmp_path)
    check(found)
    assert found["groups"] == ["attention", "experts"]
