"""Both engines against the trainer: same adapter, same tokens, same log-probabilities. vLLM runs in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, torch
from pathlib import Path
from learner.models.sequence_packing import Branches, pack
from learner.models.lora_policy import Policy
from learner.rollouts.rollout_engines import TransformersEngine, VllmEngine
from learner.settings import LearnerSettings

base, out = Path(sys.argv[1]), Path(sys.argv[2])
settings = LearnerSettings(dtype="float32", max_prompt_tokens=64, max_output_tokens=12, prompts_per_step=3, expert_rank=4)
policy = Policy(base, settings)
generator = torch.Generator().manual_seed(1)
with torch.no_grad():
    for weight in policy.parameters.values():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
found = {}
prompts = [(1, 50, 900, 44), (1, 7), (1, 300, 20, 4000, 41)]
for engine in (VllmEngine(policy, settings), TransformersEngine(policy)):
    for version in (1, 2):
        engine.adopt(policy, version)
        rollouts = engine.sample(prompts, 4, 12, temperature=0.8, seed=5)
        packed = pack([Branches(r.prompt_ids, (r.output_ids,)) for r in rollouts], 2)
        with torch.no_grad():
            adapter = policy.stats(packed, 0.8).logprobs_BT[packed.mask_BT]
            with policy.reference():
                base_logprobs = policy.stats(packed, 0.8).logprobs_BT[packed.mask_BT]
        claimed = torch.tensor([x for r in rollouts for x in r.behaviour_logprobs])
        found[f"{engine.name}-{version}"] = {
            "rollouts": len(rollouts),
            "versions": sorted({r.policy_version for r in rollouts}),
            "groups_differ": len({r.output_ids for r in rollouts[:4]}),
            "ends": sorted({r.finish for r in rollouts}),
            "gap": float((claimed - adapter).abs().max()),
            "base_gap": float((claimed - base_logprobs).abs().mean()),
            "threads": torch.get_num_threads(),
        }
        with torch.no_grad():  # the next version is another adapter: the engine must not answer with the old one
            for weight in policy.parameters.values():
                weight.mul_(-1.5)
    engine.close()
    with torch.no_grad():
        for weight in policy.parameters.values():
            weight.div_(2.25)
out.write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    out = tmp_path_factory.mktemp("engines") / "found.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-P", "-c", SCRIPT, str(tiny_base), str(out)], check=True, timeout=550, env=environment)
    return dict(json.loads(out.read_text()))


@pytest.mark.parametrize("run", ["vllm-1", "vllm-2", "transformers-1", "transformers-2"])
def test_an_engines_logprobs_are_the_trainers_with_the_adapter_on_attention_and_experts_of_a_lower_rank(
    found: dict[str, dict[str, float]], run: str
) -> None:
    assert found[run]["gap"] < 1e-3  # float32
    assert found[run]["base_gap"] > 0.1  # and it is the adapter that answers, not the base
    assert found[run]["rollouts"] == 12
    assert found[run]["versions"] == [int(run[-1])]
    assert found[run]["groups_differ"] > 1


def test_vllm_leaves_the_trainer_its_threads(found: dict[str, dict[str, float]]) -> None:
    assert found["vllm-1"]["threads"] == found["transformers-1"]["threads"] == 1
