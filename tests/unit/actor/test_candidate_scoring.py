"""The reward model as a judge: it scores what it was fitted on, and notices when people's verdicts leave it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actor.promotion.candidate_scoring import RewardJudge
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import BadArtifact
from streams.core.events import Calibration, Label, Message, RewardModelVersion, Vote
from streams.core.part_context import PartContext
from streams.kafka import KafkaSettings

T0 = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = (Message(role="user", content="hi"),)


class Letters:
    """Features of two letters."""

    fingerprint = "f" * 64
    blocks = ((2, 1.0),)

    def features(self, pairs: Sequence[tuple[Sequence[Message], str]]) -> Tensor:
        return torch.tensor([[float(answer.count("y")), float(answer.count("n"))] for _, answer in pairs])


def head(features: str = "f" * 64) -> RewardModel:
    weights = torch.tensor([[4.0, -4.0], [3.0, -3.0]])
    ones, none = torch.ones(2), torch.zeros(2)
    return RewardModel(features=features, temperature=1.0, offset=0.0, lower_bound_stds=1.0, centre_D=none, spread_D=ones, gain_D=ones.clone(),
                       heads_KD=weights, head_bias_K=none.clone(), folds_FD=weights.clone(), fold_bias_F=none.clone())  # fmt: skip


def published(store: ArtifactStore, folder: Path, model: RewardModel, number: int = 1) -> RewardModelVersion:
    artifact = store.put(model.save(folder / f"model-{number}"), f"reward-models/{number}")
    calibration = Calibration(labels=100, accuracy=0.9, baseline=0.5, brier=0.1, ece=0.02)
    return RewardModelVersion(policy="default", version=number, artifact=artifact, backbone_fingerprint="f" * 64, labels=100, calibration=calibration,
                              offsets={}, newest_feedback_at=T0, created_at=T0)  # fmt: skip


def labels(verdicts: Sequence[float], answers: Sequence[str]) -> list[Label]:
    made = []
    for number, (verdict, answer) in enumerate(zip(verdicts, answers, strict=True)):
        at = T0 + timedelta(minutes=number)
        votes = (Vote(feedback_id=f"f{number}", user_id="ann", kind="thumb", value=verdict, at=at),)
        made.append(Label(episode_id=f"e{number}", policy="default", outcome="completed", messages=ASKED, answer=answer, verdict=verdict,
                          votes=votes, episode_at=at, first_feedback_at=at, newest_feedback_at=at))  # fmt: skip
    return made


@pytest.fixture
def judge(tmp_path: Path) -> RewardJudge:
    (tmp_path / "state").mkdir()
    context = PartContext(KafkaSettings(), ArtifactStore(str(tmp_path / "store")), "default", tmp_path, tmp_path / "state")
    return RewardJudge(RewardSettings(), context, Letters())


def test_good_answers_score_high_and_a_newer_version_takes_the_place_of_the_old(judge: RewardJudge, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    good, bad = judge.score(published(store, tmp_path, head()), [(ASKED, "yy"), (ASKED, "n")])
    assert good > 0.95 > 0.05 > bad
    turned = head()
    other = RewardModel(**{**turned.__dict__, "heads_KD": -turned.heads_KD})
    assert judge.score(published(store, tmp_path, other, 2), [(ASKED, "yy")])[0] < 0.05
    assert list((tmp_path / "state").iterdir()) == []  # nights are many: no fetched version stays on the disk


def test_a_model_of_other_features_judges_nothing(judge: RewardJudge, tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="other features"):
        judge.score(published(ArtifactStore(str(tmp_path / "store")), tmp_path, head("0" * 64)), [(ASKED, "y")])


def test_a_world_that_turns_is_noticed_and_one_that_does_not_is_left_alone(judge: RewardJudge, tmp_path: Path) -> None:
    version = published(ArtifactStore(str(tmp_path / "store")), tmp_path, head())
    answers = ["y", "n"] * 50
    steady, turned = [1.0, 0.0] * 50, [1.0, 0.0] * 30 + [0.0, 1.0] * 20
    assert judge.drifts(version, labels(steady, answers)) is False
    assert judge.drifts(version, labels(turned, answers)) is True
    assert judge.drifts(version, []) is False
