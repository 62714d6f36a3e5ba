"""Several processes of one learner on a real Ray: they learn together, and losing one loses at most the step in hand."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from test_learner_ring import cmdline, reward_model

from learner.cluster import LearnerActor
from learner.settings import LearnerSettings
from reward.features import Featurizer
from reward.settings import RewardSettings
from streams.errors import Unavailable
from streams.events import Artifact, Message

SETTINGS = LearnerSettings(max_output_tokens=6, samples_per_prompt=2, threads=1, learning_rate=0.01, engine="transformers", dtype="float32",
                           workers=2, worker_timeout_s=60)  # fmt: skip
PROMPTS = [(Message(role="user", content=f"What is number {n}?"),) for n in range(3)]
REWARD = Artifact(path="reward/1", sha256="0" * 64, size_bytes=1)


@pytest.fixture
def actor(tiny_base: Path, tmp_path: Path) -> Iterator[LearnerActor]:
    reward_model(Featurizer(tiny_base / "dense", RewardSettings())).save(tmp_path / "reward")
    made = LearnerActor(SETTINGS, RewardSettings(), tiny_base, tmp_path / "state", threading.Event())
    yield made
    made.close()


def processes() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and "ray::LearnerProcess" in cmdline(p)]


def test_two_processes_learn_together_and_go_on_after_one_is_killed_with_as_many_as_there_is_room_for(
    actor: LearnerActor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(processes())
    first = actor.call("step", PROMPTS, tmp_path / "reward", REWARD)
    assert (first.step, first.metrics["output_tokens"] > 0) == (1, True)
    ours = sorted(set(processes()) - before)
    assert len(ours) == 2
    os.kill(ours[1], signal.SIGKILL)
    with pytest.raises(Unavailable, match="all start again"):
        actor.call("step", PROMPTS, tmp_path / "reward", REWARD)
    real = ray.cluster_resources()
    monkeypatch.setattr(ray, "cluster_resources", lambda: real | {"CPU": 1.0})  # its machine is lost too
    assert actor.call("steps") == 1
    assert actor.call("step", PROMPTS, tmp_path / "reward", REWARD).step == 2
    assert len(set(processes()) - before) == 1
