"""Rebuilds any reward-model version from the lake: the same labels, the same fit, the same checksum. Score explanations use it too.

A version is a function of the labels below its offsets, the settings and the features, so it can be rebuilt as long as the lake has these labels.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from reward.features.featurizer import Features
from reward.fit.buffer_entry import BufferEntry
from reward.fit.label_entries import labels_and_tombstones, short_hash
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from reward.trust.vote_propensity import AnsweredTurn, Propensity, WeightingEffect, effect_of, fit_propensity
from reward.updater.refitter import Refitter
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import ConfigError, InvalidEvent
from streams.core.events import Episode, Label, RewardModelVersion
from streams.core.topics import EPISODES, LABELS, REWARD_MODELS
from streams.erasure.forgotten_people import Forgotten, record_without
from streams.join.feedback_join import DEFAULT_EVIDENCE
from streams.join.join_settings import EvidenceSettings
from streams.kafka import Record
from streams.lake.parquet_lake import Lake

TOLD_EVERY = 8
"""Labels between two words of progress."""


@dataclass(frozen=True)
class Rebuilt:
    """A published version compared with its rebuild."""

    version: int
    labels: int
    published: str
    """Checksum of the model in the artifact store."""
    rebuilt: str
    moved: float = 0.0
    """Mean difference of both models' scores on the remaining labels, 0 to 1."""
    most_moved: float = 0.0
    """Largest such difference."""

    @property
    def equal(self) -> bool:
        """True when both checksums are the same."""
        return self.published == self.rebuilt


def versions_of(lake: Lake, policy: str, since: datetime | None = None, until: datetime | None = None) -> list[RewardModelVersion]:
    """The policy's versions published from ``since`` (included) to ``until`` (not included), by number."""
    found = {v.version: v for v in lake.replay(REWARD_MODELS, since, until) if v.policy == policy}
    return [found[number] for number in sorted(found)]


class Replay:
    """Reads the lake's labels in order and rebuilds each version on top of the one before."""

    def __init__(self, lake: Lake, policy: str, settings: RewardSettings, features: Features, without: Forgotten | None = None,
                 evidence: EvidenceSettings = DEFAULT_EVIDENCE, partitions: int = 1) -> None:  # fmt: skip
        """``without``: rebuild as if these people had never been there; ``evidence`` says how their labels are worked out again; ``partitions`` of
        the labels' topic (``kafka.partitions``)."""
        propensity = Propensity.load(settings.propensity_file) if settings.propensity_file else None
        self._policy, self._features = policy, features
        self.refitter = Refitter(settings, features, propensity=propensity, partitions=partitions)
        self._ends = lake.positions(LABELS)
        self._labels = {partition: _LabelsInOrder(lake, partition, without, evidence) for partition in sorted(self._ends)}

    def reach(self, version: RewardModelVersion, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Read every label that the version had seen. ``progress`` hears how many of how many have their features.
        Raises ConfigError when the lake or the settings are not those that it was made with."""
        if version.backbone_fingerprint != self._features.fingerprint:
            raise ConfigError(f"version {version.version} was fitted on other features: another base, or other [reward] settings of the features")
        seen = version.offsets.get(LABELS.name, {})
        for partition, end in seen.items():
            if self._ends.get(partition, 0) < end:
                ends = self._ends.get(partition, 0)
                raise ConfigError(f"version {version.version} has seen labels up to offset {end} of partition {partition}, the lake ends at {ends}")
        read, gone = labels_and_tombstones(self.take(seen), _label)
        labels = [label for label, *_ in read if label.policy == self._policy]
        entries: list[BufferEntry] = []
        for start in range(0, len(labels), TOLD_EVERY):
            progress(start, len(labels))
            entries += self.refitter.prepare(labels[start : start + TOLD_EVERY])
        self.refitter.absorb(entries, gone)

    def take(self, ends: Mapping[int, int]) -> list[Record]:
        """The labels' records below these offsets by partition that were not taken before, one partition after the other."""
        return [record for partition, labels in self._labels.items() for record in labels.below(ends.get(partition, 0))]

    def rebuild(self, version: RewardModelVersion, artifacts: ArtifactStore) -> Rebuilt:
        """Rebuild the version and compare it with the published one."""
        self.reach(version)
        model, published = self.refitter.fitted(), published_model(version, artifacts)
        features_ND = self.refitter.buffer.rows().thumbs_ND
        apart_N = (model.score(features_ND).mean_N - published.score(features_ND).mean_N).abs()
        return Rebuilt(version.version, version.labels, published.checksum(), model.checksum(), float(apart_N.mean()), float(apart_N.max()))


class _LabelsInOrder:
    """One partition of the lake's labels, read only as far as it is asked for: all labels there ever were need not be in memory."""

    def __init__(self, lake: Lake, partition: int, without: Forgotten | None, evidence: EvidenceSettings) -> None:
        records = lake.records(LABELS, partition=partition)
        self._left = (record_without(record, without, evidence) for record in records) if without else records
        self._next: Record | None = None

    def below(self, end: int) -> list[Record]:
        """The next records, up to offset ``end`` (not included)."""
        found = []
        while (record := self._next if self._next is not None else next(self._left, None)) is not None and record.offset < end:
            found.append(record)
            self._next = None
        self._next = record
        return found


def published_model(version: RewardModelVersion, artifacts: ArtifactStore) -> RewardModel:
    """The published model. Raises BadArtifact."""
    with tempfile.TemporaryDirectory() as folder:
        return RewardModel.load(artifacts.fetch(version.artifact, Path(folder) / "model"))


def episode_of(lake: Lake, episode_id: str) -> Episode:
    """An episode by its id. Raises ConfigError when the lake does not have it."""
    for record in lake.records(EPISODES):
        if record.key == episode_id.encode():
            try:
                return EPISODES.decode(record.value)
            except InvalidEvent:
                continue
    raise ConfigError(f"the lake has no episode {episode_id}")


def fit_who_votes(lake: Lake, policy: str, since: datetime | None, until: datetime | None, clip: float) -> tuple[Propensity, WeightingEffect]:
    """Fit a propensity model on the policy's episodes of that time, and measure what weighting by it does. Raises ConfigError without votes."""
    verdicts = {label.episode_id: label.verdict for label in lake.replay(LABELS) if label.policy == policy}
    episodes = {e.episode_id: e for e in lake.replay(EPISODES, since, until) if e.policy == policy}
    ordered = sorted(episodes.values(), key=lambda e: (e.ended_at, e.episode_id))
    asked = [AnsweredTurn(e.messages, short_hash(e.user_id) if e.user_id else None, verdicts.get(e.episode_id) is not None) for e in ordered]
    model = fit_propensity(policy, asked, clip)
    given = [(one, verdict) for e, one in zip(ordered, asked, strict=True) if (verdict := verdicts.get(e.episode_id)) is not None]
    return model, effect_of(model, asked, given)


def labels_of(lake: Lake, policy: str) -> list[Label]:
    """The newest label of each labelled episode of the policy."""
    read, _ = labels_and_tombstones(lake.records(LABELS), _label)
    return list({label.episode_id: label for label, *_ in read if label.policy == policy}.values())


def rebuild_all(replay: Replay, versions: Sequence[RewardModelVersion], artifacts: ArtifactStore) -> Iterator[Rebuilt]:
    """Rebuild each version, by number."""
    for version in versions:
        yield replay.rebuild(version, artifacts)


def _label(record: Record) -> Label | None:
    try:
        return LABELS.decode(record.value)
    except InvalidEvent:  # the updater set it aside too
        return None
