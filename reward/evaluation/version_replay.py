"""Any version again, from the lake: the labels that it had seen, the same fit, and the same checksum. Also what explains a score needs.

A version is a function of the labels below its offsets, the settings and the features, so it can be made again as long as the lake holds them.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from reward.features.featurizer import Features
from reward.fit.label_entries import hashed, standing_labels
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from reward.trust.vote_propensity import AskedTurn, Effect, Propensity, effect_of, fit_propensity
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


@dataclass(frozen=True)
class Rebuilt:
    """A version beside what was made again."""

    version: int
    labels: int
    published: str
    """Checksum of the model in the artifact store."""
    rebuilt: str
    moved: float = 0.0
    """How far the scores of both lie apart on the labels that are left, 0 to 1, on average."""
    most_moved: float = 0.0
    """And at the most."""

    @property
    def equal(self) -> bool:
        """Proven."""
        return self.published == self.rebuilt


def versions_of(lake: Lake, policy: str, since: datetime | None = None, until: datetime | None = None) -> list[RewardModelVersion]:
    """The policy's versions that were published in ``since`` (included) to ``until`` (not), in order of their numbers."""
    found = {v.version: v for v in lake.replay(REWARD_MODELS, since, until) if v.policy == policy}
    return [found[number] for number in sorted(found)]


class Replay:
    """The labels of the lake, read forward: each version is rebuilt on top of the one before."""

    def __init__(self, lake: Lake, policy: str, settings: RewardSettings, features: Features, without: Forgotten | None = None,
                 evidence: EvidenceSettings = DEFAULT_EVIDENCE) -> None:  # fmt: skip
        """``without``: as if somebody had never been there; labels are then counted again by ``evidence``."""
        propensity = Propensity.load(settings.propensity_file) if settings.propensity_file else None
        self._policy, self._features = policy, features
        self.refitter = Refitter(settings, features, propensity=propensity)
        self._ends = lake.positions(LABELS)
        records = lake.records(LABELS)
        self._waiting = [record_without(record, without, evidence) for record in records] if without else list(records)

    def reach(self, version: RewardModelVersion) -> None:
        """Take in every label that the version had seen. Raises ConfigError where the lake or the settings are not those it was made with."""
        if version.backbone_fingerprint != self._features.fingerprint:
            raise ConfigError(f"version {version.version} was fitted on other features: another base, or other [reward] settings of the features")
        seen = version.offsets.get(LABELS.name, {})
        for partition, end in seen.items():
            if self._ends.get(partition, 0) < end:
                ends = self._ends.get(partition, 0)
                raise ConfigError(f"version {version.version} has seen labels up to offset {end} of partition {partition}, the lake ends at {ends}")
        known = [record for record in self._waiting if record.offset < seen.get(record.partition, 0)]
        self._waiting = [record for record in self._waiting if record.offset >= seen.get(record.partition, 0)]
        labels, gone = standing_labels(known, _label)
        self.refitter.absorb(self.refitter.prepare([label for label in labels if label.policy == self._policy]), gone)

    def rebuild(self, version: RewardModelVersion, artifacts: ArtifactStore) -> Rebuilt:
        """The version made again, beside what was published."""
        self.reach(version)
        model, published = self.refitter.fitted(), published_model(version, artifacts)
        features_ND = self.refitter.buffer.rows().thumbs_ND
        apart_N = (model.score(features_ND).mean_N - published.score(features_ND).mean_N).abs()
        return Rebuilt(version.version, version.labels, published.checksum(), model.checksum(), float(apart_N.mean()), float(apart_N.max()))


def published_model(version: RewardModelVersion, artifacts: ArtifactStore) -> RewardModel:
    """The model as it was published. Raises BadArtifact."""
    with tempfile.TemporaryDirectory() as folder:
        return RewardModel.load(artifacts.fetch(version.artifact, Path(folder) / "model"))


def episode_of(lake: Lake, episode_id: str) -> Episode:
    """An episode by its id. Raises ConfigError when the lake has none of that id."""
    for record in lake.records(EPISODES):
        if record.key == episode_id.encode():
            try:
                return EPISODES.decode(record.value)
            except InvalidEvent:
                continue
    raise ConfigError(f"the lake has no episode {episode_id}")


def who_votes(lake: Lake, policy: str, since: datetime | None, until: datetime | None, clip: float) -> tuple[Propensity, Effect]:
    """A propensity model of the policy's episodes that arrived in that time, and what weighting by it does. Raises ConfigError without votes."""
    verdicts = {label.episode_id: label.verdict for label in lake.replay(LABELS) if label.policy == policy}
    episodes = {e.episode_id: e for e in lake.replay(EPISODES, since, until) if e.policy == policy}
    ordered = sorted(episodes.values(), key=lambda e: (e.ended_at, e.episode_id))
    asked = [AskedTurn(e.messages, hashed(e.user_id) if e.user_id else None, verdicts.get(e.episode_id) is not None) for e in ordered]
    model = fit_propensity(policy, asked, clip)
    given = [(one, verdict) for e, one in zip(ordered, asked, strict=True) if (verdict := verdicts.get(e.episode_id)) is not None]
    return model, effect_of(model, asked, given)


def labels_of(lake: Lake, policy: str) -> list[Label]:
    """The newest label of each of the policy's episodes that has one."""
    labels, _ = standing_labels(lake.records(LABELS), _label)
    return list({label.episode_id: label for label in labels if label.policy == policy}.values())


def rebuild_all(replay: Replay, versions: Sequence[RewardModelVersion], artifacts: ArtifactStore) -> Iterator[Rebuilt]:
    """Each version in turn, in order of their numbers."""
    for version in versions:
        yield replay.rebuild(version, artifacts)


def _label(record: Record) -> Label | None:
    try:
        return LABELS.decode(record.value)
    except InvalidEvent:  # the updater set it aside too
        return None
