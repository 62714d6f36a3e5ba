"""`tidemill reward …` on a lake of its own, with the features of the tiny base."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from infra.cli.main import main
from infra.operate.explain_episode import Explainer
from infra.settings.config import load
from reward.features.featurizer import Featurizer
from reward.settings import RewardSettings
from reward.updater.refitter import Refitter
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import Episode, Label, Message, Outcome, RewardModelVersion
from streams.core.topics import EPISODES, LABELS, REWARD_MODELS
from streams.kafka import Record
from streams.lake.parquet_lake import Lake

torch.set_num_threads(1)
T0 = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = RewardSettings(heads=3, folds=2, min_labels=4, min_each_verdict=1)
WORDS = ["you would like tea", "tea is a plant", "no"]


def label(number: int) -> Label:
    said = (Message(role="user", content="tea?"),)
    return Label(
        episode_id=f"ep-{number}",
        policy="default",
        outcome=Outcome.COMPLETED,
        messages=said,
        answer=WORDS[number % 3],
        verdict=float(number % 3 == 0),
        episode_at=T0,
        first_feedback_at=T0,
        newest_feedback_at=T0 + timedelta(minutes=number),
    )


@pytest.fixture(scope="module")
def run_folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    refitter = Refitter(SETTINGS, Featurizer(tiny_base / "dense", SETTINGS))
    labels = [label(n) for n in range(9)]
    refitter.absorb(refitter.prepare(labels))
    model, refit = refitter.fitted(), refitter.refit()
    version = RewardModelVersion(
        policy="default",
        version=1,
        artifact=ArtifactStore(str(folder / "artifacts")).put(model.save(folder / "model"), "reward-models/default/1"),
        backbone_fingerprint=model.features,
        labels=refit.labels,
        calibration=refit.evaluation.calibration,
        offsets={LABELS.name: {0: 9}},
        newest_feedback_at=T0,
        created_at=T0,
    )
    episodes = [
        Episode(episode_id=f"ep-{n}", user_id=f"u-{n % 2}", messages=label(n).messages, answer=WORDS[n % 3], started_at=T0, ended_at=T0)
        for n in range(14)
    ]
    lake = Lake(str(folder / "lake"))
    for topic, events in ((EPISODES, episodes), (LABELS, labels), (REWARD_MODELS, [version])):
        lake.write(topic, [Record(topic.name, 0, n, 1_767_225_600_000 + n, e.key.encode(), e.encode()) for n, e in enumerate(events)])
    return folder


def tidemill(run_folder: Path, base: Path, *arguments: str) -> Result:
    given = {
        "run_folder": run_folder,
        "policy.base": base,
        "reward.heads": 3,
        "reward.folds": 2,
        "reward.min_labels": 4,
        "reward.min_each_verdict": 1,
    }
    options = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    return CliRunner().invoke(main, ["reward", arguments[0], *options, *arguments[1:]])


def test_replay_proves_a_version_equal_and_exits_0(run_folder: Path, tiny_base: Path) -> None:
    result = tidemill(run_folder, tiny_base, "replay", "--from", "2026-01-01", "--to", "2026-01-02")
    assert result.exit_code == 0, result.output
    assert "version 1: 9 labels" in result.output
    assert result.output.rstrip().endswith("equal")


def test_other_settings_make_another_model_and_exit_3(run_folder: Path, tiny_base: Path) -> None:
    result = tidemill(run_folder, tiny_base, "replay", "--set", "reward.l2=9")
    assert result.exit_code == 3
    assert "NOT EQUAL" in result.output


def test_a_time_without_versions_is_told_in_one_line(run_folder: Path, tiny_base: Path) -> None:
    result = tidemill(run_folder, tiny_base, "replay", "--from", "2027-01-01")
    assert result.exit_code == 1
    assert result.output.startswith("tidemill: the lake has no reward-model version")
    assert tidemill(run_folder, tiny_base, "replay", "--from", "yesterday").exit_code == 2


def test_explain_tells_score_neighbours_and_what_moved_it(run_folder: Path, tiny_base: Path) -> None:
    result = tidemill(run_folder, tiny_base, "explain", "ep-12")
    assert result.exit_code == 0, result.output
    assert "episode ep-12, answered by the base, scored by version 1" in result.output
    neighbours = [line.split()[0] for line in result.output.splitlines() if "similarity +1.00" in line]
    assert sorted(neighbours) == ["ep-0", "ep-3", "ep-6"]  # the same answer to the same question
    assert "all others" in result.output


def test_propensity_is_fitted_written_and_read_as_a_setting(run_folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "who.json"
    result = tidemill(run_folder, tiny_base, "propensity", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "9 of 14 episodes got a vote" in result.output
    assert json.loads(out.read_text())["policy"] == "default"
    again = tidemill(run_folder, tiny_base, "replay", "--set", f"reward.propensity_file={out}")
    assert again.output.rstrip().endswith("equal")  # nobody is named on these labels, so that no weight changes


def test_the_console_is_told_the_same_and_a_second_question_costs_little(run_folder: Path, tiny_base: Path) -> None:
    explainer = Explainer(load(None, (f"run_folder={run_folder}", f"policy.base={tiny_base}", "reward.heads=3", "reward.folds=2"), {}))
    told = explainer.explain("ep-12").as_dict()
    assert sorted(n["episode_id"] for n in told["neighbours"] if n["similarity"] > 0.999) == ["ep-0", "ep-3", "ep-6"]
    assert json.loads(json.dumps(told))["version"] == 1
    replay = explainer._reached
    assert explainer.explain("ep-12").as_dict() == told
    assert explainer._reached is replay
