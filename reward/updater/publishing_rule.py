"""When a reward-model version is published. Change this file to change that.

1. The updater has read everything that was there when it was given the labels (read_progress.py), and holds all of their partitions.
2. There are labels enough: ``min_labels``, with ``min_each_verdict`` of each verdict.
3. The new model is no worse than the one published last on labels that neither had seen. The newest ``publish_window_labels`` labels that have a
   verdict are each predicted twice: by the new model's fold head that never saw a label of that fold, and by the same fold's head of the
   published model, which never saw one either. The two log losses compare fairly, however few labels came in between. Worse means that the mean
   loss is higher by more than ``publish_tolerance_se`` standard errors of the difference. The same against the version that predicts these labels
   best of all published ones: many steps that are each no worse than the last must not lead down.
4. There is no drift alarm, or the change is more than ``drift_hold_labels`` labels ago: by then the change is what the new labels are like.

After an erasure rules 3 and 4 are suspended for one version: the last one knew the person.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from reward.evaluation.calibration import log_loss, no_worse
from reward.fit.buffer_entry import BufferEntry
from reward.fit.label_evidence import lacking
from reward.fit.reward_model import RewardModel, fold_of
from reward.settings import RewardSettings
from reward.trust.drift_alarm import Drift

ALL_ALIKE: Mapping[str, float] = MappingProxyType({})
Result = Literal["published", "worse", "unchanged", "too_few", "drift"]


@dataclass(frozen=True)
class PublishingDecision:
    """Whether to publish; ``why`` is a sentence where there is something to explain."""

    result: Result
    why: str = ""


class PublishingRule:
    """Rules 2 to 4. Rule 1 is about the log: without it there is no refit at all (batch_steps.py)."""

    def __init__(self, settings: RewardSettings) -> None:
        self._settings = settings

    def too_few(self, counts: Mapping[str, int]) -> bool:
        """Rule 2, by the number of entries in each stratum of the buffer."""
        good, bad = (counts.get(verdict, 0) + counts.get(f"hint {verdict}", 0) for verdict in ("good", "bad"))
        return bool(lacking(good, bad, self._settings))

    def decide(
        self,
        model: RewardModel,
        published: RewardModel | None,
        newest: Sequence[BufferEntry],
        drift: Drift,
        predicted: int,
        erasure: bool,
        best: RewardModel | None = None,
        weights: Mapping[str, float] = ALL_ALIKE,
    ) -> PublishingDecision:
        """Rules 3 and 4. ``newest``: labels with a verdict, oldest first; ``drift`` was found in the losses of ``predicted`` labels; ``best``: the
        version that predicts best, where that is not the last one; ``weights`` of labels in the fit, by episode: 1 where there is none."""
        if published is None or erasure:
            return PublishingDecision("published")
        if model.checksum() == published.checksum():
            return PublishingDecision("unchanged")
        if not self._no_worse(model, published, newest, weights):
            return PublishingDecision("worse")
        if best is not None and not self._no_worse(model, best, newest, weights):
            return PublishingDecision("worse", "the last version stays: an earlier one predicts the newest labels better than the new one")
        if drift.recent(predicted, self._settings.drift_hold_labels):
            return PublishingDecision("drift", f"the last version stays: {drift.sentence}")
        return PublishingDecision("published")

    def better(
        self, model: RewardModel, best: RewardModel | None, newest: Sequence[BufferEntry], weights: Mapping[str, float] = ALL_ALIKE
    ) -> RewardModel:
        """Whichever of the two predicts the newest labels better."""
        if best is None or len(best.folds_FD) != self._settings.folds:
            return model
        (new_N, old_N), weights_N = self._losses(newest, model, best), self._weights(newest, weights)
        return model if float((weights_N * new_N).sum()) <= float((weights_N * old_N).sum()) else best

    def _no_worse(self, model: RewardModel, other: RewardModel, newest: Sequence[BufferEntry], weights: Mapping[str, float]) -> bool:
        if len(other.folds_FD) != self._settings.folds:
            return True  # the setting was changed: nothing of the old version is known to be unseen
        new_N, old_N = self._losses(newest, model, other)
        return no_worse(new_N, old_N, self._settings.publish_tolerance_se, self._weights(newest, weights))

    def _weights(self, newest: Sequence[BufferEntry], weights: Mapping[str, float]) -> Tensor:
        """The weight ``[N]`` of each label of the window; float64."""
        window = newest[-self._settings.publish_window_labels :]
        return torch.tensor([weights.get(entry.episode_id, 1.0) for entry in window], dtype=torch.float64)

    def _losses(self, newest: Sequence[BufferEntry], *models: RewardModel) -> list[Tensor]:
        """Each model's log losses ``[N]`` on the window, by fold heads that have not seen the label."""
        window = newest[-self._settings.publish_window_labels :]
        features_ND = torch.stack([e.features_D.float() for e in window if e.features_D is not None])
        verdicts_N = torch.tensor([e.verdict for e in window])
        folds_N = torch.tensor([fold_of(e.fold_key, self._settings.folds) for e in window])
        return [log_loss(model.unseen(features_ND, folds_N), verdicts_N) for model in models]
