"""The learner's loop over a log in memory, with processes that only count: when it waits, evaluates, publishes and writes figures down."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.ring import learner_loop as worker
from learner.runs.learner_process import StepReport
from learner.settings import LearnerSettings
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import AdapterVersion, Calibration, Episode, Label, RewardModelVersion
from streams.core.part_context import PartContext
from streams.core.topics import ADAPTERS, EPISODES, LABELS, REWARD_MODELS
from tests.support.running import running, wait_for
from tests.support.simulated_clients import at, install, producer
from tests.support.simulated_log import SimulatedLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIGURES = dict.fromkeys(
    ("rollout_s", "score_s", "train_s", "output_tokens", "train_tokens", "reward_mean", "kl_nats", "entropy_nats", "stale_rollouts", "left_out_ratio",
     "gradient_norm", "engine_ratio_mean", "effective_sample_ratio", "flat_groups_ratio", "learning_rate"), 0.5,
)  # fmt: skip


class Processes:
    """Stands for LearnerActor: takes steps by counting them."""

    def __init__(self, settings: LearnerSettings, *_: Any) -> None:
        self.taken, self.trained, self.evaluated = 0, set[str](), list[int]()

    def call(self, method: str, *given: Any) -> Any:
        return getattr(self, f"on_{method}")(*given)

    def on_features(self) -> str:
        return "f" * 64

    def on_adapter_bytes(self) -> int:
        return 300 << 20

    def on_steps(self) -> int:
        return self.taken

    def on_step(self, prompts: list[Any], *_: Any) -> StepReport:
        self.taken += 1
        self.trained |= {prompt[-1].text for prompt in prompts}
        return StepReport(self.taken, FIGURES)

    def on_evaluate(self, prompts: list[Any], folder: Path) -> dict[str, float]:
        assert any(folder.iterdir())
        self.evaluated.append(self.taken)
        assert not self.trained & {prompt[-1].text for prompt in prompts}
        return {"evaluation_reward_mean": 0.25, "evaluation_prompts": float(len(prompts))}

    def on_export(self, folder: Path, parent_step: int) -> tuple[str, ...]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter.txt").write_text(str(self.taken))
        return ("q_proj",)

    def close(self) -> None:
        return None


def label(number: int, adapter: str | None) -> Label:
    return Label.model_validate({
        "episode_id": f"ep-{number}", "policy": "default", "outcome": "completed", "answer": "a", "verdict": 1.0, "adapter": adapter,
        "messages": [{"role": "user", "content": "hi"}], "votes": [{"feedback_id": "f", "user_id": "ann", "kind": "thumb", "value": 1.0, "at": NOW}],
        "episode_at": NOW, "first_feedback_at": NOW, "newest_feedback_at": NOW,
    })  # fmt: skip


def publish_inputs(context: PartContext, folder: Path) -> None:
    for n in range(30):
        asked = [{"role": "user", "content": f"Q{n}"}]
        producer().publish(EPISODES, Episode.model_validate({"episode_id": f"e{n}", "messages": asked, "started_at": NOW, "ended_at": NOW}))
    RewardModel(features="f" * 64, temperature=1.0, offset=0.0, lower_bound_stds=0.5, centre_D=torch.zeros(2), spread_D=torch.ones(2),
                gain_D=torch.ones(2), heads_KD=torch.zeros(4, 2), head_bias_K=torch.zeros(4), folds_FD=torch.zeros(3, 2),
                fold_bias_F=torch.zeros(3)).save(folder)  # fmt: skip
    calibration = Calibration(labels=10, accuracy=0.8, baseline=0.5, brier=0.2, ece=0.1)
    producer().publish(REWARD_MODELS, RewardModelVersion(
        policy="default", version=1, artifact=context.artifacts.put(folder, "reward-models/default/1"), backbone_fingerprint="f" * 64, labels=20,
        calibration=calibration, offsets={}, newest_feedback_at=NOW, created_at=NOW,
    ))  # fmt: skip


def test_the_loop_waits_for_labels_evaluates_publishes_by_size_and_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(monkeypatch, SimulatedLog())
    processes: list[Processes] = []
    monkeypatch.setattr(worker, "LearnerActor", lambda *given: processes.append(Processes(*given)) or processes[0])
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "state").mkdir()
    context = PartContext(at("learner"), ArtifactStore(str(tmp_path / "store")), "default", tmp_path / "base", tmp_path / "state")
    publish_inputs(context, tmp_path / "reward")
    settings = LearnerSettings(
        prompts_per_step=4, max_steps=5, steps_without_labels=2, recent_version_steps=3, evaluate_every=2, evaluation_prompts=3, held_out_ratio=0.3
    )

    def waits() -> bool:
        return context.metrics.value("tidemill_learner_waiting", what="labels_of_newest") == 1

    def versions() -> list[AdapterVersion]:
        return [ADAPTERS.decode(record.value) for record in log.records(ADAPTERS)]

    with running(lambda s: worker.run(settings, RewardSettings(), s), context):
        wait_for(lambda: waits() and processes[0].taken == 2)
        producer().publish(LABELS, label(1, None))  # on the base, two steps ago
        wait_for(lambda: waits() and processes[0].taken == 4)
        assert [event.step for event in versions()] == [3]  # 300 MiB: every third step
        producer().publish(LABELS, label(2, "default@1"))
        wait_for(lambda: [event.step for event in versions()] == [3, 5])  # and the last
    assert processes[0].evaluated == [0, 2, 4]
    lines = [json.loads(line) for line in (tmp_path / "state" / "tracking" / "steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("evaluated_step"), line["reward_model"]) for line in lines] == [
        (1, 0.0, 1), (2, None, 1), (3, 2.0, 1), (4, None, 1), (5, 4.0, 1)
    ]  # fmt: skip
    assert lines[0]["evaluation_reward_mean"] == 0.25
