"""An adapter merged into its base says what the adapter says, in a folder that transformers alone reads."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.ring.merged_export import MergedFolder, export
from learner.rollouts.rollout_engines import Rollout
from learner.runs.adapter_probes import probes_of
from learner.settings import LearnerSettings
from streams.artifacts.artifact_store import ArtifactStore, fingerprint
from streams.core.errors import BadArtifact, ConfigError
from streams.core.events import AdapterVersion

pytestmark = pytest.mark.usefixtures("torch_threads")
ROLLOUTS = [Rollout((1, 5, 9, 30), (8, 120, 33, 2), (-1.0,) * 4, "stop", 0), Rollout((1, 7, 200), (44, 45, 46), (-1.0,) * 3, "cut", 0)]


class World:
    """A policy whose adapter moved attention and experts, published in a store."""

    def __init__(self, base: Path, folder: Path, spoiled: bool = False, **settings: object) -> None:
        self.base, self.store = base, ArtifactStore(str(folder / "store"))
        self.policy, draw = Policy(base, LearnerSettings.model_validate({"dtype": "float32"} | settings)), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in self.policy.parameters.values():
                weight += 0.05 * torch.randn(weight.shape, generator=draw)
        self.policy.save_adapter(folder / "adapter")
        probes = probes_of(self.policy, ROLLOUTS, 2, None)
        if spoiled:
            probes["probes"][0]["adapter_logprobs"][0] -= 0.5
        (folder / "adapter" / "probes.json").write_text(json.dumps(probes))
        self.chain = [
            AdapterVersion(
                policy="default",
                version=n,
                artifact=self.store.put(folder / "adapter", f"adapters/{n}"),
                base_fingerprint=fingerprint(base),
                parent=n - 1 or None,
                rank=8,
                targets=self.policy.targets,
                reward_model_version=n + 3,
                step=n,
                created_at=datetime.now(UTC),
            )
            for n in (1, 2)
        ]

    def export(self, out: Path, dtype: str = "float32") -> MergedFolder:
        return export(self.chain, self.store, self.base, out, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("expert_rank", [0, 3])
def test_the_folder_gives_the_policys_own_logprobs_with_transformers_alone(tiny_base: Path, tmp_path: Path, expert_rank: int) -> None:
    world = World(tiny_base, tmp_path, expert_rank=expert_rank)
    found = world.export(tmp_path / "merged")
    assert found.gap_nats < 1e-3 < found.step_nats
    assert found.tokens == 7
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto", local_files_only=True)
    assert model.dtype == torch.float32
    rows = [Branches((1, 5, 9, 30), ((8, 120, 33, 2), (300, 301)))]
    with torch.no_grad():
        ours_BT = world.policy.stats(pack(rows, padding_id=2)).logprobs_BT
        for n, output in enumerate(rows[0].outputs):
            logits_TV = model(torch.tensor([[1, 5, 9, 30, *output]])).logits[0, 3:-1]
            theirs_T = torch.log_softmax(logits_TV, -1)[range(len(output)), list(output)]
            torch.testing.assert_close(theirs_T, ours_BT[n, : len(output)], rtol=1e-3, atol=1e-3)
        with world.policy.without("experts"):
            assert (world.policy.stats(pack(rows, padding_id=2)).logprobs_BT - ours_BT).abs().max() > 0.01  # experts are a part of it


def test_tokenizer_lineage_and_card_are_there(tiny_base: Path, tmp_path: Path) -> None:
    World(tiny_base, tmp_path).export(tmp_path / "merged", "bfloat16")
    merged, base = (AutoTokenizer.from_pretrained(folder, local_files_only=True) for folder in (tmp_path / "merged", tiny_base))
    asked = [{"role": "user", "content": "Tea?"}]
    assert merged.apply_chat_template(asked, return_dict=False) == base.apply_chat_template(asked, return_dict=False)
    lineage = json.loads((tmp_path / "merged" / "lineage.json").read_text())
    assert [(each["version"], each["reward_model_version"]) for each in lineage] == [(1, 4), (2, 5)]
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "# default@2, merged" in card
    assert "| default@1 | 1 | 4 |" in card
    assert fingerprint(tiny_base) in card
    assert list((tmp_path / "merged").glob("*.safetensors"))
    assert not list((tmp_path / "merged").glob("*.bin"))


def test_nothing_is_written_over_on_another_base_or_where_it_does_not_say_the_same(tiny_base: Path, tmp_path: Path) -> None:
    world = World(tiny_base, tmp_path, spoiled=True)
    with pytest.raises(BadArtifact, match=r"differs by 0\.500 nats"):
        world.export(tmp_path / "merged")
    world.chain[-1] = world.chain[-1].model_copy(update={"base_fingerprint": "0" * 64})
    with pytest.raises(ConfigError, match=r"default@2 was trained on 000000000000 \(policy\.base\)"):
        world.export(tmp_path / "merged")
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        world.export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "store"]
