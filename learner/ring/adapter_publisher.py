"""Publishes adapters: first the artifact, then the event that names it, so that an event never names a missing artifact."""

import hashlib
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from learner.rollouts.published_adapters import PublishedAdapter, note_published
from learner.settings import LearnerSettings
from streams.artifacts.artifact_store import fingerprint, sha256_of
from streams.core.events import AdapterVersion, RewardModelVersion
from streams.core.part_context import PartContext
from streams.core.topics import ADAPTERS
from streams.core.traces import Headers
from streams.kafka import Producer, read_to_end

RECENT = 64


@dataclass(frozen=True)
class Exported:
    """An adapter's folder (PEFT's files and probes.json), ready to publish."""

    folder: Path
    targets: tuple[str, ...]
    step: int
    metrics: dict[str, float]


class AdapterPublisher:
    """Numbers and publishes adapters. A number is never used twice, since the last one is on the log."""

    def __init__(self, settings: LearnerSettings, context: PartContext, producer: Producer) -> None:
        self._settings, self._context, self._producer = settings, context, producer
        self._base_fingerprint = fingerprint(context.base)
        self.recent = recent_adapters(context)
        """The newest adapters that were on the log at the start, oldest first."""
        newest = self.recent[-1] if self.recent else None
        self._newest = newest.version if newest else 0
        self.parent_step = newest.step if newest else 0
        """The step of the last published adapter, from which the next one continues."""
        if newest:
            self._tell_engine(newest)

    def publish(
        self, exported: Exported, reward_model: RewardModelVersion, began_at: datetime | None = None, follows: Headers = ()
    ) -> AdapterVersion:
        """Store the artifact, publish the event, and return it once Kafka has acknowledged it. Raises Unavailable; a retry is safe.

        ``began_at``: when the step before it began; ``follows``: the trace of the reward model.
        """
        version = self._newest + 1
        # The path names the content: after a crash between artifact and event, another adapter of this number finds its place free.
        content = "".join(sha256_of(p) for p in sorted(exported.folder.iterdir()))
        path = f"adapters/{self._context.policy}/{version}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        event = AdapterVersion(
            policy=self._context.policy,
            version=version,
            artifact=self._context.artifacts.put(exported.folder, path),
            base_fingerprint=self._base_fingerprint,
            parent=self._newest or None,
            rank=self._settings.rank,
            targets=exported.targets,
            reward_model_version=reward_model.version,
            reward_model_offsets=reward_model.offsets,
            newest_feedback_at=reward_model.newest_feedback_at,
            step=exported.step,
            metrics={name: value for name, value in exported.metrics.items() if math.isfinite(value)},
            created_at=self._context.clock.now(),
        )
        told = self._context.traces.record_span(
            "step", began_at or event.created_at, event.created_at, [follows], adapter=event.name, step=exported.step
        )
        self._producer.publish(ADAPTERS, event, told)
        self._newest, self.parent_step = version, exported.step
        self._tell_engine(event)
        self._context.metrics.add("tidemill_adapters_published_total")
        self._context.metrics.observe("tidemill_reward_model_to_adapter_seconds", (event.created_at - reward_model.created_at).total_seconds())
        return event

    def _tell_engine(self, event: AdapterVersion) -> None:
        """For rollouts by actors (``learner.engine = "actor"``): which adapter is of which step."""
        note_published(self._context.state, PublishedAdapter(event.name, event.step, event.artifact.sha256))


def recent_adapters(context: PartContext) -> list[AdapterVersion]:
    """The ``RECENT`` adapters with the highest versions of this part's policy on the log, oldest first."""
    events = (ADAPTERS.decode(record.value) for record in read_to_end(context.kafka, ADAPTERS, "learner", context.metrics) if record.value)
    return sorted((event for event in events if event.policy == context.policy), key=lambda event: event.version)[-RECENT:]
