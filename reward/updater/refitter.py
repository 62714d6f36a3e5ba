"""The updater without its wiring: labels in, and a reward model out when it is fit to be published (publishing_rule.py)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import torch

from reward.evaluation.version_evaluator import Evaluation, evaluate
from reward.features.featurizer import Features
from reward.fit.buffer_entry import BufferEntry
from reward.fit.head_fit import FitRecipe, Rows, fit
from reward.fit.label_entries import entries_of
from reward.fit.replay_buffer import ReplayBuffer
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from reward.trust.crowd_judge import trusted_rows
from reward.trust.vote_caps import CappedRows, capped_rows, person_capped
from reward.trust.vote_propensity import Propensity
from reward.updater.publishing_rule import PublishingDecision, PublishingRule, Result
from streams.core.events import Label


@dataclass(frozen=True)
class Refit:
    """The result of a refit, with the ``model`` if it should be published."""

    result: Result
    model: RewardModel | None
    why: str
    """The result in a sentence; empty when there is nothing to explain."""
    evaluation: Evaluation
    best: RewardModel | None
    """The version that predicts best once ``model`` is published, where that is not ``model``."""
    labels: int
    newest_feedback_at: datetime | None
    largest_person_share: float | None
    """The largest part of the weight of all labels and pairs that any one person holds; None where nobody is named or nothing was fitted."""
    capped: dict[str, float]
    """By rule (``vote_caps.RULES``), the part of that weight that it moved away from where too much came from; empty when nothing was fitted."""


class Refitter:
    """Holds the replay buffer and the model published last. Knows nothing of Kafka, files or time."""

    def __init__(
        self,
        settings: RewardSettings,
        features: Features,
        published: RewardModel | None = None,
        propensity: Propensity | None = None,
        partitions: int = 1,
    ) -> None:
        """``partitions`` of the labels' topic: each has its part of the buffer."""
        self._settings, self.features, self._propensity = settings, features, propensity
        self.published = published if published is not None and published.features == features.fingerprint else None
        self.best: RewardModel | None = None
        """The published version that predicts the newest labels best, where that is not the last one."""
        self._partitions = partitions
        self.buffer = self._buffer_of(())
        self._rule = PublishingRule(settings)
        self._erasure_pending = False
        """A version without somebody who was erased is yet to be published."""

    def prepare(self, labels: Sequence[Label], unseen: bool = True) -> list[BufferEntry]:
        """Entries of the labels, each with the published model's prediction if that model has not seen the label. Slow; on any thread."""
        weigh = self._propensity.weight_of if self._propensity else (lambda _: 1.0)
        entries = entries_of(labels, self.features, weigh)
        return self.predicted(entries) if unseen else entries

    def absorb(self, entries: Sequence[BufferEntry], gone: Sequence[str] = ()) -> dict[str, bytes | None]:
        """Forget episodes that have no label any more, then take the entries in; returns what to store durably by episode, None to delete.

        After an erasure the next version is published by no other rule than that there are labels enough for one: the last one knew the person.
        """
        self._erasure_pending |= bool(gone) or any(entry.erasures for entry in entries)
        changed = self.buffer.remove(gone) | self.buffer.add(entries)
        return {episode_id: entry.encode() if entry else None for episode_id, entry in changed.items()}

    def recover(self, stored: Sequence[bytes]) -> None:
        """Begin again from what was stored."""
        self.buffer = self._buffer_of(BufferEntry.decode(raw) for raw in stored)

    def _buffer_of(self, entries: Iterable[BufferEntry]) -> ReplayBuffer:
        return ReplayBuffer(self._settings.buffer_labels, entries, self._settings.person_share, self._partitions)

    def refit(self) -> Refit:
        """Fit on all of the buffer, and judge the result by the publishing rule."""
        window = self._settings.validation_window_labels
        found = evaluate(self._window(window), self.buffer.with_verdict(window))
        best: RewardModel | None = None
        model, decision, share, capped = None, PublishingDecision("too_few"), None, dict[str, float]()
        if not self._rule.too_few(self.buffer.counts()):
            weighed = self._weighed()
            model, share, capped = fit(weighed.rows, self.recipe()), weighed.largest_share, weighed.moved
            newest = self._window(self._settings.publish_window_labels)
            counted = dict(zip(weighed.rows.episodes, weighed.rows.weights_N.tolist(), strict=True))
            decision = self._rule.decide(
                model, self.published, newest, found.drift, found.calibration.labels, self._erasure_pending, self.best, counted
            )
            if decision.result == "published" and not self._erasure_pending:
                best = self._rule.better(model, self.best or self.published, newest, counted)
            self._erasure_pending &= decision.result != "published"
        return Refit(
            result=decision.result,
            model=model if decision.result == "published" else None,
            why=decision.why,
            best=best if best is not model else None,
            evaluation=found,
            labels=self._labels(),
            newest_feedback_at=self.buffer.newest_feedback_at(),
            largest_person_share=share,
            capped=capped,
        )

    def go_on_from(self, published: RewardModel | None, best: RewardModel | None) -> None:
        """The standing version, and the one that predicts best where that is another."""
        self.published, self.best = published, best

    def disagreement(self) -> float | None:
        """How far apart the heads of the published ensemble are on the newest labels: mean standard deviation of their chances."""
        window = [e.features_D.float() for e in self._window(self._settings.publish_window_labels) if e.features_D is not None]
        if self.published is None or not window:
            return None
        return float(self.published.score(torch.stack(window)).std_N.mean())

    def fitted(self) -> RewardModel:
        """The model of what the buffer holds: a function of the labels alone, whatever was published before."""
        return fit(self.weighted(), self.recipe())

    def weighted(self) -> Rows:
        """The buffer's rows with each person's weight: by the caps, then by how far people agree with the crowd (crowd_judge.py)."""
        return self._weighed().rows

    def _weighed(self) -> CappedRows:
        capped = capped_rows(self.buffer, self._settings)
        if not self._settings.weigh_reliability and not self._settings.smooth_by_reliability:
            return capped
        s, pair_voters = self._settings, [self.buffer[episode_id].voters for episode_id in capped.rows.pair_episodes]
        rows = trusted_rows(capped.rows, pair_voters, self.recipe(), s.weigh_reliability, s.smooth_by_reliability)
        return replace(person_capped(rows, pair_voters, s.person_share), moved=capped.moved)

    def _labels(self) -> int:
        counts = self.buffer.counts()
        return sum(counts[stratum] for stratum in ("good", "bad", "hint good", "hint bad"))

    def _window(self, newest: int) -> list[BufferEntry]:
        """The newest labels that people gave, oldest first; where none did, the newest hints."""
        return self.buffer.with_verdict(newest, people_only=True) or self.buffer.with_verdict(newest)

    def predicted(self, entries: list[BufferEntry]) -> list[BufferEntry]:
        """The entries with the published model's prediction, where they have features."""
        features = [e.features_D for e in entries if e.features_D is not None]
        if self.published is None or not features:
            return entries
        said = iter(self.published.score(torch.stack(features).float()).mean_N.tolist())
        return [replace(e, predicted=next(said)) if e.features_D is not None else e for e in entries]

    def recipe(self) -> FitRecipe:
        """How this fits."""
        s = self._settings
        return FitRecipe(
            features=self.features.fingerprint,
            blocks=self.features.blocks,
            heads=s.heads,
            folds=s.folds,
            l2=s.l2,
            l2_in_doubt=s.l2_in_doubt,
            lower_bound_stds=s.lower_bound_stds,
            calibration_half_life_labels=s.calibration_half_life_labels,
        )
