"""The whole ring, as `tidemill up` runs it, on a random tiny model of each family that vLLM serves on a CPU: thumbs, reward model, step, adapter,
attested, served."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.local_ring import Ring
from infra.operate.ring_status import status_now
from infra.settings.config import load
from tests.support.running import wait_for
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.timeout(900)
LABELS = 6
EXPERTS = "mlp.experts.gate_up_proj"


@pytest.mark.parametrize("kind", ["mixtral", "olmoe", "qwen3", "qwen3_moe"])
def test_a_thumb_comes_back_as_an_attested_adapter(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    base = tiny_model(kind, tmp_path / "base", tiny_base)
    of_mixture = () if kind == "qwen3" else (f"reward.backbone={tiny_base / 'dense'}",)  # a dense base is its own backbone
    settings = load("tiny", (f"run_folder={tmp_path / 'run'}", f"policy.base={base}", *of_mixture, f"reward.min_labels={LABELS}",
                             "reward.min_each_verdict=2", f"learner.prompts_needed={LABELS}", "learner.prompts_per_step=2", "learner.max_steps=2",
                             "learner.dtype=float32", "actor.dtype=float32", "reward.dtype=float32"), {})  # fmt: skip
    with Ring(settings, lambda _: None) as ring:
        ring.await_actor(420)
        with httpx.Client(base_url=ring.base_url, timeout=120) as http:

            def ask(about: str) -> httpx.Response:
                body: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": f"Tell me about {about}."}], "max_tokens": 6}
                answer = http.post("/chat/completions", json=body)
                answer.raise_for_status()
                return answer

            for number, about in enumerate(("rain", "tea", "owls", "salt", "bees", "maps")):
                episode = ask(about).headers["x-tidemill-episode"]
                thumb = "down" if number % 2 else "up"
                http.post("/feedback", json={"episode_id": episode, "kind": "thumb", "thumb": thumb}).raise_for_status()

            def an_adapter_answers() -> bool:
                ring.check()
                return ask("snow").headers.get("x-tidemill-adapter", "base").startswith("default@")

            wait_for(an_adapter_answers, 420)
        facts = status_now(ring.settings).facts
    assert facts.reward_models
    assert facts.adapters
    assert (EXPERTS in facts.adapters[0].targets) == (kind != "qwen3")
    attested = [each for each in facts.attestations if each.passed]
    assert attested, [each.reason for each in facts.attestations]
    assert all(each.passed for each in facts.attestations), [each.reason for each in facts.attestations]
