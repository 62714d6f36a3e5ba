"""Learner and actor in different precisions, both real: healthy adapters are served, the first small step included, and partial ones are not."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.models.base_cache import prepare_base
from learner.models.lora_policy import Policy
from learner.rollouts.engine_choice import make_engine
from learner.rollouts.rollout_engines import Rollout
from learner.runs.adapter_probes import probes_of
from learner.runs.trainer import Trainer
from learner.settings import LearnerSettings
from streams.artifacts.artifact_store import ArtifactStore, fingerprint
from streams.core.events import AdapterVersion, Attestation, Message
from streams.core.metrics import Metrics
from streams.core.topics import ADAPTERS, ATTESTATIONS
from streams.kafka import KafkaSettings, Producer, read_to_end
from tests.support.actor_process import ActorProcess
from tests.support.running import wait_for

WEIGHTS = "adapter_model.safetensors"


class Pair:
    """A learner, and an actor that is shown what it exports."""

    def __init__(self, actor: ActorProcess, policy_name: str, precision: str) -> None:
        self._actor, self._name, self._version = actor, policy_name, 0
        settings = LearnerSettings(dtype=precision, prompts_per_step=4, samples_per_prompt=4, max_output_tokens=28, expert_rank=4)
        self.policy = Policy(actor.base, settings)
        self._trainer = Trainer(self.policy, make_engine(self.policy, settings), settings)
        self._rollouts: list[Rollout] = []
        self._parent: dict[str, Tensor] | None = None

    def step(self) -> None:
        """One step of learning: what the answers say of their own length."""
        prompts = [(Message(role="user", content=f"Say {n} to the sea."),) for n in range(4)]
        self._rollouts = list(self._trainer.step(prompts, lambda pairs: [len(answer) % 7 / 7 for _, answer in pairs]).rollouts)

    def grow(self) -> None:
        """As after many steps: an adapter whose every part moves the answers far more than noise."""
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, weight in self.policy.parameters.items():
                if "lora_B" in name:
                    weight.add_(torch.randn(weight.shape, generator=generator) * 0.02)

    def export(self) -> Path:
        """The newest adapter, as the learner's process exports it."""
        folder = self._actor.folder / f"exported-{self._version}"
        self.policy.save_adapter(folder)
        (folder / "probes.json").write_text(json.dumps(probes_of(self.policy, self._rollouts, 4, self._parent)))
        self._parent = {name: weight.detach().clone() for name, weight in self.policy.parameters.items()}
        return folder

    def shown(self, folder: Path) -> Attestation:
        """What the actor says of these files as the next version."""
        self._version += 1
        artifact = ArtifactStore(str(self._actor.folder / "artifacts")).put(folder, f"adapters/{self._name}/{self._version}")
        event = AdapterVersion(
            policy=self._name, version=self._version, artifact=artifact, base_fingerprint=fingerprint(self._actor.base), rank=8,
            targets=self.policy.targets, reward_model_version=1, step=self._version, created_at=datetime.now(UTC),
        )  # fmt: skip
        producer = Producer(self._actor.kafka, Metrics(), "test")
        producer.publish(ADAPTERS, event)
        producer.close()

        def attestations() -> list[Attestation]:
            values = (record.value for record in read_to_end(self._actor.kafka, ATTESTATIONS, "test", Metrics()))
            return [found for value in values if value and (found := ATTESTATIONS.decode(value)).adapter == event.name]

        wait_for(lambda: bool(attestations()), within_s=120)
        return attestations()[-1]

    def spoiled(self, folder: Path, empty: str, is_told: bool = True) -> Path:
        """A copy in which the tensors of that name are zeros. Unless it ``is_told`` which tensors were exported, as before norms were stored."""
        copy = folder.with_name(f"{folder.name}-{empty}-{is_told}")
        shutil.copytree(folder, copy)
        tensors = load_file(copy / WEIGHTS)
        for name in (name for name in tensors if empty in name and "lora_B" in name):
            tensors[name] = torch.zeros_like(tensors[name])
        save_file(tensors, copy / WEIGHTS, {"format": "pt"})
        if not is_told:
            probes = json.loads((copy / "probes.json").read_text())
            (copy / "probes.json").write_text(json.dumps(probes | {"tensors": {}}))
        return copy


@pytest.fixture(scope="module", params=[("float32", "bfloat16"), ("bfloat16", "float32")], ids=["bfloat16 actor", "bfloat16 learner"])
def pair(request: pytest.FixtureRequest, kafka_settings: KafkaSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    learner, actor = request.param
    folder = tmp_path_factory.mktemp(f"precision-{actor}")
    name = f"precision-{actor}"
    settings = {"policy.name": name, "actor.dtype": actor, "actor.max_rank": 8, "actor.max_model_tokens": 256}
    with ActorProcess(kafka_settings, prepare_base("tiny", folder / "cache"), folder, "test", settings) as running:
        yield Pair(running, name, learner)


@pytest.fixture(scope="module")
def first(pair: Pair) -> Path:
    pair.step()
    return pair.export()


@pytest.fixture(scope="module")
def grown(pair: Pair, first: Path) -> Path:
    pair.grow()
    return pair.export()


def test_the_first_small_step_is_served(pair: Pair, first: Path) -> None:
    found = pair.shown(first)
    assert found.passed, found.reason
    assert found.proof in ("answers", "tensors")
    assert found.noise_nats is not None
    if found.adapter.startswith("precision-bfloat16"):  # the learner reads its probes in float32, whatever it trains in
        assert 1e-3 < found.noise_nats < 0.1
    else:
        assert found.noise_nats < 1e-3


def test_a_large_step_is_proved_by_its_answers(pair: Pair, grown: Path) -> None:
    found = pair.shown(grown)
    assert (found.passed, found.proof, found.reason) == (True, "answers", "attested")
    assert found.share == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("empty", ["experts", "q_proj", "experts.base_layer"])
@pytest.mark.parametrize("of", ["the first small step", "a large step"])
def test_an_adapter_whose_tensors_were_emptied_is_refused_with_their_names(pair: Pair, first: Path, grown: Path, of: str, empty: str) -> None:
    found = pair.shown(pair.spoiled(first if of == "the first small step" else grown, empty))
    assert not found.passed
    assert "tensors differ from the learner's export: model.layers.0." in found.reason
    assert empty in found.reason


@pytest.mark.parametrize("empty", ["experts", "self_attn", "lora_B"])
def test_an_adapter_that_went_out_in_part_without_a_list_of_its_tensors_is_refused_by_its_answers(pair: Pair, grown: Path, empty: str) -> None:
    found = pair.shown(pair.spoiled(grown, empty, is_told=False))
    assert not found.passed
    assert found.proof is None
    assert "of the adapter's step from the base" in found.reason or "of what the adapter on" in found.reason
    assert found.share_high is not None


def test_a_tensor_that_the_engine_does_not_place_is_named(pair: Pair, grown: Path) -> None:
    """A layer that the engine does not have stands for every name that it drops without a word."""
    copy = grown.with_name(f"{grown.name}-renamed")
    shutil.copytree(grown, copy)
    tensors = load_file(copy / WEIGHTS)
    renamed = {name.replace("layers.0.self_attn.q_proj", "layers.7.self_attn.q_proj"): tensor for name, tensor in tensors.items()}
    save_file(renamed, copy / WEIGHTS, {"format": "pt"})
    probes = json.loads((copy / "probes.json").read_text())
    probes["tensors"] = {name.replace("layers.0.self_attn.q_proj", "layers.7.self_attn.q_proj"): norm for name, norm in probes["tensors"].items()}
    (copy / "probes.json").write_text(json.dumps(probes))
    found = pair.shown(copy)
    assert not found.passed
    assert "2 of" in found.reason
    assert "tensors did not take effect here: model.layers.7.self_attn.q_proj.lora_A, model.layers.7.self_attn.q_proj.lora_B" in found.reason
