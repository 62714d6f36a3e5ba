"""The learner in the ring: real Kafka, real Ray, the tiny base; killed in the middle, and told to stop."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from learner.ring import learner_loop as worker
from learner.ring.adapter_recipe import AdapterRecipe
from learner.ring.adapter_replay import ancestry, replay
from learner.settings import LearnerSettings
from reward.features.featurizer import Featurizer
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import AdapterVersion, Calibration, Episode, Label, RewardModelVersion
from streams.core.part_context import PartContext
from streams.core.topics import ADAPTERS, EPISODES, LABELS, REWARD_MODELS
from streams.kafka import KafkaSettings, Producer, read_to_end
from tests.support.running import running, wait_for

SETTINGS = LearnerSettings(max_output_tokens=8, prompts_per_step=2, prompts_needed=2, threads=1, learning_rate=0.01, engine="transformers")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
LEARNER = """
import sys
from pathlib import Path
from learner.ring import learner_loop as worker
from learner.settings import LearnerSettings
from reward.settings import RewardSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.kafka import KafkaSettings
from streams.core.part_context import PartContext

settings, bootstrap, artifacts, policy, base, state = sys.argv[1:]
context = PartContext(KafkaSettings(bootstrap_servers=bootstrap), ArtifactStore(artifacts), policy, Path(base), Path(state))
worker.run(LearnerSettings.model_validate_json(settings), RewardSettings(), context)
"""


@pytest.fixture
def context(kafka_settings: KafkaSettings, tiny_base: Path, tmp_path: Path) -> PartContext:
    (tmp_path / "state").mkdir()
    return PartContext(kafka_settings, ArtifactStore(str(tmp_path / "artifacts")), f"p-{tmp_path.name}"[:90], tiny_base, tmp_path / "state")


@pytest.fixture
def producer(context: PartContext) -> Iterator[Producer]:
    made = Producer(context.kafka, context.metrics, "test")
    yield made
    made.close()


def publish_inputs(context: PartContext, producer: Producer, folder: Path) -> None:
    for n in range(4):
        producer.publish(EPISODES, Episode.model_validate({
            "episode_id": f"{context.policy}-{n}", "policy": context.policy, "messages": [{"role": "user", "content": f"What is number {n}?"}],
            "answer": "words", "started_at": NOW, "ended_at": NOW,
        }))  # fmt: skip
    votes = {"kind": "thumb", "value": 1.0}, {"kind": "comment", "text": "Say it in words."}, {"kind": "reply", "text": "I meant the other."}
    for n, vote in enumerate(votes):
        producer.publish(LABELS, Label.model_validate({
            "episode_id": f"{context.policy}-{n}", "policy": context.policy, "outcome": "completed", "answer": "words",
            "messages": [{"role": "user", "content": f"What is number {n}?"}], "verdict": vote.get("value"), "episode_at": NOW,
            "votes": [{"feedback_id": f"f-{n}", "user_id": "u-1", "at": NOW} | vote], "first_feedback_at": NOW, "newest_feedback_at": NOW,
        }))  # fmt: skip
    featurizer = Featurizer(context.base / "dense", RewardSettings())
    reward_model(featurizer).save(folder)
    event = RewardModelVersion(
        policy=context.policy, version=1, artifact=context.artifacts.put(folder, f"reward-models/{context.policy}/1"),
        backbone_fingerprint=featurizer.fingerprint, labels=20, calibration=Calibration(labels=10, accuracy=0.8, baseline=0.5, brier=0.2, ece=0.1),
        offsets={"tidemill.labels.v1": {0: 7}}, newest_feedback_at=NOW, created_at=NOW,
    )  # fmt: skip
    producer.publish(REWARD_MODELS, event)


def reward_model(featurizer: Featurizer) -> RewardModel:
    size = sum(block for block, _ in featurizer.blocks)
    chance = torch.Generator().manual_seed(0)
    return RewardModel(
        features=featurizer.fingerprint, temperature=1.0, offset=0.0, lower_bound_stds=0.5, centre_D=torch.zeros(size), spread_D=torch.ones(size),
        gain_D=torch.ones(size), heads_KD=torch.randn(4, size, generator=chance) * 0.1, head_bias_K=torch.zeros(4),
        folds_FD=torch.zeros(3, size), fold_bias_F=torch.zeros(3),
    )  # fmt: skip


def adapters(context: PartContext) -> list[AdapterVersion]:
    found = [ADAPTERS.decode(r.value) for r in read_to_end(context.kafka, ADAPTERS, "test", context.metrics)]
    return [event for event in found if event.policy == context.policy]


def test_prompts_labels_and_a_reward_model_become_adapters_with_probes_and_a_restart_goes_on(
    context: PartContext, producer: Producer, tmp_path: Path
) -> None:
    publish_inputs(context, producer, tmp_path / "head")
    mixed = SETTINGS.model_copy(update={"thumb_weight": 1.0, "hindsight_weight": 1.0, "hindsight_replies": True})
    worker.run(mixed.model_copy(update={"max_steps": 2}), RewardSettings(), context)
    one, two = adapters(context)
    assert (one.version, two.version, two.parent, two.step, two.reward_model_version) == (1, 2, 1, 2, 1)
    assert two.reward_model_offsets == {"tidemill.labels.v1": {0: 7}}
    assert one.metrics["device_s"] >= one.metrics["rollout_s"] + one.metrics["train_s"] > 0  # what it cost, for those who promote it
    folder = context.artifacts.fetch(two.artifact, tmp_path / "fetched")
    assert {p.name for p in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "probes.json", "recipe.json"}
    stored = json.loads((folder / "probes.json").read_text())
    assert len(stored["probes"]) >= SETTINGS.probes
    assert set(stored["tensors"]) == set(load_file(folder / "adapter_model.safetensors"))
    for probe in stored["probes"]:
        said_by = (probe["adapter_logprobs"], probe["base_logprobs"], probe["parent_logprobs"], *probe["without"].values())
        assert {len(logprobs) for logprobs in said_by} == {len(probe["output_ids"])} != {0}
        assert len({tuple(logprobs) for logprobs in said_by}) == 5  # nobody says the same
    assert context.metrics.value("tidemill_adapters_published_total") == 2
    assert context.metrics.value("tidemill_learner_steps_total") == 2
    assert context.metrics.value("tidemill_learner_stale_rollouts_total") == context.metrics.value("tidemill_learner_entropy_alarm") == 0
    live = {
        (answer.episode_id, answer.verdict, answer.comments, answer.replies) for taken in AdapterRecipe.read(folder).steps for answer in taken.judged
    }
    said = (1.0, (), ()), (None, ("Say it in words.",), ()), (None, (), ("I meant the other.",))
    assert live == {(f"{context.policy}-{n}", *each) for n, each in enumerate(said)}
    assert (two.metrics["thumb_answers"], two.metrics["hindsight_answers"]) == (1, 2)

    worker.run(mixed.model_copy(update={"max_steps": 3}), RewardSettings(), context)  # a new process: step 3 comes next, and version 3
    assert [(event.version, event.step) for event in adapters(context)] == [(1, 1), (2, 2), (3, 3)]

    again = list(replay(ancestry(adapters(context), 3), context.artifacts, context.base, RewardSettings()))  # over the restart, without Ray and Kafka
    assert [(one.name, one.step, one.equal) for one in again] == [(f"{context.policy}@{n}", n, True) for n in (1, 2, 3)]


def test_a_learner_killed_in_the_middle_goes_on_from_its_checkpoint_and_stops_when_told(
    context: PartContext, producer: Producer, tmp_path: Path
) -> None:
    publish_inputs(context, producer, tmp_path / "head")
    with running(partial(worker.run, SETTINGS, RewardSettings()), context):
        wait_for(lambda: len(adapters(context)) >= 2)
        learners_below(psutil.Process())[0].kill()
        killed_at = len(adapters(context))
        wait_for(lambda: len(adapters(context)) >= killed_at + 2)
    assert_nothing_twice_and_nothing_back(context)
    assert not ray.is_initialized()


def test_a_learner_killed_whole_leaves_no_process_that_learns_on_and_a_new_one_goes_on_from_its_checkpoint(
    context: PartContext, producer: Producer, tmp_path: Path
) -> None:
    publish_inputs(context, producer, tmp_path / "head")
    told = (
        SETTINGS.model_dump_json(),
        context.kafka.bootstrap_servers,
        str(tmp_path / "artifacts"),
        context.policy,
        str(context.base),
        str(context.state),
    )
    with subprocess.Popen([sys.executable, "-P", "-c", LEARNER, *told]) as whole:
        wait_for(lambda: whole.poll() is not None or len(adapters(context)) >= 1)
        left = learners_below(psutil.Process(whole.pid))
        whole.kill()  # what Ray has started is not told; it has to see that nobody is left to learn for
    assert left
    wait_for(lambda: not any(process.is_running() for process in left))
    published = len(adapters(context))
    assert published >= 1
    with running(partial(worker.run, SETTINGS, RewardSettings()), context):
        wait_for(lambda: len(adapters(context)) >= published + 1)
    assert_nothing_twice_and_nothing_back(context)


def assert_nothing_twice_and_nothing_back(context: PartContext) -> None:
    found = adapters(context)
    assert [event.version for event in found] == list(range(1, len(found) + 1))
    steps = [event.step for event in found]
    assert steps == sorted(set(steps))  # no step is published twice, none goes back
    assert steps[-1] <= len(found) + 1  # at most the step in hand was lost


def learners_below(process: psutil.Process) -> list[psutil.Process]:
    """The learner's processes that this one has started through Ray; another ring on this machine has others."""
    return [child for child in process.children(recursive=True) if "ray::LearnerProcess" in command_line(child)]


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
