"""Several processes of one learner on a real Ray: they learn together, and losing one loses at most the step in hand."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster
from test_learner_on_kafka import learners_below, reward_model

from learner.distributed.ray_cluster import LearnerActor
from learner.settings import LearnerSettings
from reward.features.featurizer import Featurizer
from reward.settings import RewardSettings
from streams.core.errors import Unavailable
from streams.core.events import Artifact, Message
from tests.support.running import wait_for

SETTINGS = LearnerSettings(max_output_tokens=6, samples_per_prompt=2, threads=1, learning_rate=0.01, engine="transformers", dtype="float32",
                           workers=2, worker_timeout_s=60)  # fmt: skip
PROMPTS = [(Message(role="user", content=f"What is number {n}?"),) for n in range(3)]
REWARD = Artifact(path="reward/1", sha256="0" * 64, size_bytes=1)


@pytest.fixture
def machines() -> Iterator[Cluster]:
    """Two of them with a processor each, as Ray sees it: each with a raylet and an object store of its own."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20})
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def actor(machines: Cluster, tiny_base: Path, tmp_path: Path) -> Iterator[LearnerActor]:
    reward_model(Featurizer(tiny_base / "dense", RewardSettings())).save(tmp_path / "reward")
    settings = SETTINGS.model_copy(update={"ray_address": machines.address})
    made = LearnerActor(settings, RewardSettings(), tiny_base, tmp_path / "state", threading.Event())
    yield made
    made.close()


def test_two_processes_learn_together_and_when_a_machine_is_lost_go_on_with_as_many_as_there_is_room_for(
    machines: Cluster, actor: LearnerActor, tmp_path: Path
) -> None:
    before = {*learners_below(psutil.Process())}
    first = actor.call("step", PROMPTS, tmp_path / "reward", REWARD)
    assert (first.step, first.metrics["output_tokens"] > 0) == (1, True)
    both = {*learners_below(psutil.Process())} - before
    assert len(both) == 2
    (second,) = machines.worker_nodes
    machines.remove_node(second, allow_graceful=False)
    taken = taken_until_the_loss(lambda: actor.call("step", PROMPTS, tmp_path / "reward", REWARD).step)
    steps: list[int] = []
    wait_for(lambda: came_back(actor, steps))
    assert steps[0] in (taken, taken + 1)  # what was in hand may have been written down before the loss
    assert actor.call("step", PROMPTS, tmp_path / "reward", REWARD).step == steps[0] + 1
    wait_for(lambda: not any(process.is_running() for process in both))  # the lost machine's may take a moment to end
    assert len({*learners_below(psutil.Process())} - before) == 1


def taken_until_the_loss(step: Callable[[], int]) -> int:
    """Steps taken when the learner says that it has lost a machine, whose process may live on for a step or more."""
    taken = 1
    for _ in range(1000):
        try:
            taken = step()
        except Unavailable:
            return taken
    raise AssertionError("the loss was never seen")


def came_back(actor: LearnerActor, steps: list[int]) -> bool:
    """Asked again and again, as the loop does: Ray needs a while to see that a machine is gone, and starts two processes until then."""
    with suppress(Unavailable):
        steps.append(actor.call("steps"))
    return bool(steps)
