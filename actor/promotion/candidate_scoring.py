"""Scores candidates' answers with the reward model, and checks whether the model still agrees with people."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from reward.evaluation.calibration import brier_losses
from reward.features.featurizer import Features, Pair
from reward.features.part_features import features_of_part
from reward.fit.label_entries import is_unreadable, opening_of
from reward.fit.reward_model import RewardModel, fold_of
from reward.settings import RewardSettings
from reward.trust.drift_alarm import rise_of_mean
from streams.core.errors import BadArtifact
from streams.core.events import Label, RewardModelVersion
from streams.core.part_context import PartContext


class CandidateJudge(Protocol):
    """The promoter and its tests depend on this protocol instead of a reward model."""

    def score(self, version: RewardModelVersion, pairs: Sequence[Pair]) -> list[float]:
        """Probability that people call each answer good, 0 to 1. Raises BadArtifact or Unavailable."""

    def drifts(self, version: RewardModelVersion, labels: Sequence[Label]) -> bool:
        """True when the loss on these labels (oldest first) has risen for good. Raises BadArtifact or Unavailable."""


class RewardJudge:
    """Loads the backbone on first use, and a version's heads on their first use."""

    def __init__(self, settings: RewardSettings, context: PartContext, features: Features | None = None) -> None:
        self._settings, self._context, self._features = settings, context, features
        self._model: tuple[str, RewardModel] | None = None

    def score(self, version: RewardModelVersion, pairs: Sequence[Pair]) -> list[float]:
        model = self._load(version)
        return [float(mean) for mean in model.score(self._backbone().features(pairs)).mean_N]

    def drifts(self, version: RewardModelVersion, labels: Sequence[Label]) -> bool:
        known = [label for label in labels if label.verdict is not None and not is_unreadable(label)]
        if not known:
            return False
        model = self._load(version)
        folds_N = torch.tensor([fold_of(opening_of(label), len(model.fold_bias_F)) for label in known])
        chances_N = model.unseen(self._backbone().features([(label.prompt, label.whole_answer) for label in known]), folds_N)
        losses_N = brier_losses(chances_N, torch.tensor([float(label.verdict or 0.0) for label in known]))
        return rise_of_mean(losses_N.tolist()).alarm

    def _backbone(self) -> Features:
        if self._features is None:
            self._features = features_of_part(self._context.base, self._settings)
        return self._features

    def _load(self, version: RewardModelVersion) -> RewardModel:
        if self._model is None or self._model[0] != version.artifact.sha256:
            with tempfile.TemporaryDirectory(prefix="reward-model-", dir=self._context.state) as folder:  # in memory it is all that is needed
                model = RewardModel.load(self._context.artifacts.fetch(version.artifact, Path(folder) / "fetched"))
            if model.features != self._backbone().fingerprint:
                raise BadArtifact(f"reward model {version.version} was fitted on other features than those of this base and these settings")
            self._model = (version.artifact.sha256, model)
        return self._model[1]
