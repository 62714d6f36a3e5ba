"""Reward-model versions: where the last one stood, and publishing the next. The artifact first, then its event."""

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import structlog

from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from reward.trust.live_answers import LiveAnswers, report
from reward.updater.refitter import Refit, Refitter
from streams.core.errors import BadArtifact, InvalidEvent, Unavailable
from streams.core.events import Artifact, RewardModelVersion
from streams.core.part_context import PartContext
from streams.core.topics import LABELS, REWARD_MODELS
from streams.core.traces import Headers, trace_in_logs
from streams.kafka import Producer, read_to_end

MOST_FOLLOWED = 64
"""Labels that a version's span links to."""
MOST_CUT = 0.5
"""Part of the weight that the cap on a person may take before the log says so: in a small team that is rarely meant."""
log = structlog.get_logger()


class VersionPublisher:
    """Numbers versions without a gap in meaning: the next is one more than the last on the topic, whoever wrote it."""

    def __init__(self, settings: RewardSettings, context: PartContext, producer: Producer, features: str) -> None:
        self._settings, self._context, self._producer = settings, context, producer
        self.features = features
        self._newest: RewardModelVersion | None = None
        self.catch_up()
        self._withheld: Counter[str] = Counter()
        self._follows: list[Headers] = []
        self._cuts_most = False
        """The cap on a person took most of the weight at the last refit, and the log has said so."""

    def catch_up(self) -> bool:
        """Go on from the newest version on the topic, whoever wrote it; True when it is another than was known."""
        before, self._newest = self._newest, self._last_on_the_topic()
        return self._newest != before

    @property
    def newest_offsets(self) -> Mapping[int, int]:
        """The labels that the newest version has seen: next offset by partition; empty when it was fitted on other features."""
        known = self._newest is not None and self._newest.backbone_fingerprint == self.features
        return self._newest.offsets.get(LABELS.name, {}) if known and self._newest else {}

    @property
    def number(self) -> int:
        """The newest version's number; 0 before the first."""
        return self._newest.version if self._newest else 0

    def newest_model(self) -> RewardModel | None:
        """The newest version's model, when it was fitted on the features we use now and its artifact is whole."""
        return self._model(self._newest.artifact) if self._newest is not None else None

    def best_model(self) -> RewardModel | None:
        """The version that predicts best, where that is not the newest; under the same conditions."""
        return self._model(self._newest.best) if self._newest is not None and self._newest.best is not None else None

    @property
    def base_measures(self) -> dict[str, float]:
        """What the newest version's updater had measured on the base's answers."""
        return self._newest.base_measures if self._newest else {}

    def _model(self, artifact: Artifact) -> RewardModel | None:
        if self._newest is None or self._newest.backbone_fingerprint != self.features:
            return None
        with tempfile.TemporaryDirectory() as folder:
            try:
                return RewardModel.load(self._context.artifacts.fetch(artifact, Path(folder) / "model"))
            except BadArtifact as error:
                log.warning("version_unusable", version=self.number, artifact=artifact.path, error=str(error))
                return None

    def continue_traces(self, labels: Sequence[Headers]) -> None:
        """The next version's trace continues that of the newest label."""
        self._follows = [*self._follows, *labels][-MOST_FOLLOWED:]

    def refit_and_publish(self, refitter: Refitter, offsets: Mapping[int, int], watch: LiveAnswers | None = None) -> RewardModelVersion | None:
        """Refit, and publish when the rule allows it; ``offsets`` name the labels in the buffer. With the store or Kafka away, the labels are safe
        and the next batch tries again."""
        with trace_in_logs(*self._follows):
            return self._refitted(refitter, offsets, watch or LiveAnswers())

    def _refitted(self, refitter: Refitter, offsets: Mapping[int, int], watch: LiveAnswers) -> RewardModelVersion | None:
        began, began_at = time.perf_counter(), self._context.clock.now()
        refit = refitter.refit()
        self._report(refit, time.perf_counter() - began)
        if (apart := refitter.disagreement()) is not None:
            self._context.metrics.set("tidemill_reward_disagreement_ratio", apart)
        log.debug("refitted", result=refit.result, labels=refit.labels)
        if refit.model is None or refit.newest_feedback_at is None:
            self._withheld[refit.result] += 1
            if refit.why:
                log.warning("reward_model_withheld", version=self.number, why=refit.why)
            return None
        best = None
        if refit.best is not None and self._newest is not None:
            best = self._newest.artifact if refit.best is refitter.published else self._newest.best
        try:
            event = self._publish(refit, refit.model, refit.newest_feedback_at, offsets, watch, best, began_at)
        except Unavailable as error:
            log.warning("publishing_failed", error=str(error))
            self._context.metrics.add("tidemill_reward_versions_total", result="unavailable")
            return None
        refitter.go_on_from(refit.model, refit.best)
        self._newest = event
        self._withheld.clear()
        self._context.metrics.observe("tidemill_label_to_reward_model_seconds", (event.created_at - event.newest_feedback_at).total_seconds())
        log.info("reward_model_published", version=event.version, labels=refit.labels, accuracy=round(refit.evaluation.calibration.accuracy, 3))
        return event

    def _publish(
        self,
        refit: Refit,
        model: RewardModel,
        newest_feedback_at: datetime,
        offsets: Mapping[int, int],
        watch: LiveAnswers,
        best: Artifact | None,
        began_at: datetime,
    ) -> RewardModelVersion:
        """The path holds the checksum: after a kill between artifact and event, the same number may name another model."""
        number = self.number + 1
        with tempfile.TemporaryDirectory() as folder:
            saved = model.save(Path(folder) / "model")
            artifact = self._context.artifacts.put(saved, f"reward-models/{self._context.policy}/{number:06d}-{model.checksum()[:12]}")
        event = RewardModelVersion(
            policy=self._context.policy,
            version=number,
            artifact=artifact,
            backbone_fingerprint=self.features,
            labels=refit.labels,
            calibration=refit.evaluation.calibration,
            slices=refit.evaluation.slices,
            alarms=(*refit.evaluation.alarms, *(str(finding) for finding in watch.findings() if finding.tripped)),
            largest_person_share=refit.largest_person_share,
            withheld=dict(self._withheld),
            best=best,
            base_measures=watch.base_measures(),
            offsets={LABELS.name: dict(offsets)},
            newest_feedback_at=newest_feedback_at,
            created_at=self._context.clock.now(),
        )
        headers = self._context.traces.record_span("refit", began_at, event.created_at, self._follows, version=number, labels=refit.labels)
        self._producer.publish(REWARD_MODELS, event, headers)
        self._follows = []
        return event

    def _report(self, refit: Refit, took_s: float) -> None:
        metrics = self._context.metrics
        metrics.observe("tidemill_reward_refit_seconds", took_s)
        metrics.add("tidemill_reward_versions_total", result=refit.result)
        metrics.set("tidemill_reward_buffer_labels", refit.labels)
        if refit.evaluation.calibration.labels:
            metrics.set("tidemill_reward_accuracy_ratio", refit.evaluation.calibration.accuracy)
            metrics.set("tidemill_reward_ece_ratio", refit.evaluation.calibration.ece)
        if refit.evaluation.calibration.auc is not None:
            metrics.set("tidemill_reward_auc_ratio", refit.evaluation.calibration.auc)
        for rule, part in refit.capped.items():
            metrics.set("tidemill_reward_capped_ratio", part, rule=rule)
        cuts_most = refit.capped.get("person", 0.0) > MOST_CUT
        if cuts_most and not self._cuts_most:
            log.warning("person_cap_cuts_most", cut=round(refit.capped["person"], 2), largest_person_share=refit.largest_person_share,
                        why="reward.person_share bounds what one person counts; a team whose members trust each other sets it to 1")  # fmt: skip
        self._cuts_most = cuts_most
        if refit.largest_person_share is not None:
            metrics.set("tidemill_reward_largest_person_share_ratio", refit.largest_person_share)
        metrics.set("tidemill_reward_drift_alarm", float(refit.evaluation.drift.alarm))
        report([refit.evaluation.divergence] if refit.evaluation.divergence else [], metrics)
        if refit.evaluation.alarms:
            log.warning("reward_model_alarm", why="; ".join(refit.evaluation.alarms))

    def _last_on_the_topic(self) -> RewardModelVersion | None:
        records = read_to_end(self._context.kafka, REWARD_MODELS, "reward", self._context.metrics)
        newest: RewardModelVersion | None = None
        for record in records:
            try:
                version = REWARD_MODELS.decode(record.value)
            except InvalidEvent as error:
                log.warning("reward_model_event_skipped", offset=record.offset, reason=error.reason)
                continue
            if version.policy == self._context.policy and (newest is None or version.version >= newest.version):
                newest = version
        return newest
