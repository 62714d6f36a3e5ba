"""Finds adapters and reward models that are no longer needed. The log says what is in use; when it cannot, nothing is deleted."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from actor.promotion.promotion_stages import AdapterStanding
from infra.local.part_process import artifacts_uri
from infra.operate.prune_settings import PruneSettings
from infra.settings.config import Settings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import ConfigError, InvalidEvent
from streams.core.events import AdapterVersion, Attestation, Event, Promotion, RewardModelVersion
from streams.core.metrics import Metrics
from streams.core.topics import ADAPTERS, ATTESTATIONS, PROMOTIONS, REWARD_MODELS, Topic
from streams.kafka import KafkaSettings, read_to_end

NUMBERED = re.compile(r".*/0*(\d+)-[0-9a-f]+")


class InUse:
    """The versions of one policy that are in use, from the log's events."""

    def __init__(self, policy: str) -> None:
        self._policy, self._standing = policy, AdapterStanding(policy)
        self._adapters: dict[int, AdapterVersion] = {}
        self._served: dict[str, datetime] = {}
        self.newest_reward_model: RewardModelVersion | None = None

    def take(self, event: Event) -> None:
        """Add an event."""
        match event:
            case Promotion():
                self._standing = self._standing.after(event)
            case AdapterVersion() if event.policy == self._policy:
                self._adapters[event.version] = event
            case Attestation() if event.passed:
                self._served[event.adapter] = max(event.at, self._served.get(event.adapter, event.at))
            case RewardModelVersion() if event.policy == self._policy:
                self.newest_reward_model = event

    def adapters(self, kept: PruneSettings, gated: bool, served_since: datetime) -> list[AdapterVersion]:
        """Versions to keep. ``served_since``: a replica that has reported since then counts as still serving."""
        standing = self._standing
        back_to = [name for name in standing.earlier if name is not None and name not in standing.bad][-kept.keep_productions :]
        named = {*standing.wanted, *back_to, *(name for name, at in self._served.items() if at >= served_since)}
        untried = max(standing.version(name) or 0 for name in (standing.production, *standing.tried))
        newest = sorted(self._adapters)[-kept.keep_adapters :]
        return [
            adapter for version, adapter in sorted(self._adapters.items())
            if version in newest or adapter.name in named or (gated and version > untried)
        ]  # fmt: skip

    @property
    def needed(self) -> list[str]:
        """Artifacts that the ring needs to run: production, trial, rollback target, and the newest."""
        named = [*self._standing.wanted, f"{self._policy}@{self.newest_adapter}"]
        paths = [adapter.artifact.path for adapter in self._adapters.values() if adapter.name in named]
        return [*paths, self.newest_reward_model.artifact.path] if self.newest_reward_model else paths

    @property
    def reward_models(self) -> list[str]:
        """Artifacts of reward models that are in use: the newest's, and that of the version which predicts best, however old: the updater compares
        each new version with it."""
        newest = self.newest_reward_model
        return [artifact.path for artifact in (newest.artifact, newest.best) if artifact is not None] if newest else []

    @property
    def newest_adapter(self) -> int:
        """Version number of the newest; 0 before the first."""
        return max(self._adapters, default=0)


@dataclass(frozen=True)
class Pruning:
    """Artifacts that may be deleted and those that are kept: paths with sizes in bytes."""

    unneeded: Mapping[str, int]
    kept: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: sizes in bytes."""
        return {"unneeded": dict(self.unneeded), "kept": dict(self.kept)}

    def __str__(self) -> str:
        """For a terminal."""
        lines = [f"{path:<60}{size / 1e6:>10.1f} MB" for path, size in self.unneeded.items()]
        lines.append(f"{len(self.unneeded)} artifacts are not needed, {_mb(self.unneeded)} MB; {len(self.kept)} are kept, {_mb(self.kept)} MB")
        return "\n".join(lines)


def read_in_use(kafka: KafkaSettings, policy: str) -> InUse:
    """Read the log to its end. Raises Unavailable; ConfigError when a record cannot be read."""
    found = InUse(policy)
    for topic in (PROMOTIONS, ADAPTERS, ATTESTATIONS, REWARD_MODELS):
        for event in _events(kafka, topic):
            found.take(event)
    return found


def plan(store: ArtifactStore, used: InUse, settings: Settings, now: datetime) -> Pruning:
    """What may be deleted. Raises ConfigError when log and store do not match: then the log does not say what is in use."""
    policy, gated = settings.policy.name, settings.gated_policy is not None
    adapters, reward_models = store.below(f"adapters/{policy}"), store.below(f"reward-models/{policy}")
    kept = used.adapters(settings.prune, gated, now - timedelta(hours=settings.promotion.replica_memory_h))
    newest = used.newest_reward_model
    expected = [*(adapter.artifact.path for adapter in kept), *used.reward_models]
    if (adapters and not kept) or (reward_models and newest is None):
        raise ConfigError(f"the log has no version of policy {policy}, but artifacts_uri has: kafka and artifacts_uri do not match")
    if absent := [path for path in used.needed if path not in adapters and path not in reward_models]:
        raise ConfigError(f"{absent[0]} is in use but not stored: kafka and artifacts_uri do not match, or it was deleted by hand")
    made_with = {adapter.reward_model_version for adapter in kept}
    oldest = newest.version - settings.prune.keep_reward_models if newest else 0
    gone = _older(adapters, used.newest_adapter) - set(expected)
    gone |= {path for path in _older(reward_models, oldest) if _number(path) not in made_with} - set(expected)
    every = adapters | reward_models
    return Pruning({path: size for path, size in every.items() if path in gone}, {path: size for path, size in every.items() if path not in gone})


def plan_now(settings: Settings, now: datetime) -> tuple[ArtifactStore, Pruning]:
    """What may be deleted of this run, and its artifact store."""
    store = ArtifactStore(artifacts_uri(settings))
    return store, plan(store, read_in_use(settings.kafka, settings.policy.name), settings, now)


def _older(paths: Iterable[str], number: int) -> set[str]:
    """Only versions up to this number: later ones are being published right now. Files without a number are left alone."""
    return {path for path in paths if 0 < _number(path) <= number}


def _number(path: str) -> int:
    found = NUMBERED.fullmatch(path)
    return int(found[1]) if found else 0


def _events(kafka: KafkaSettings, topic: Topic[Any]) -> Iterable[Event]:
    for record in read_to_end(kafka, topic, "prune", Metrics()):
        if record.value is None:
            continue
        try:
            yield topic.decode(record.value)
        except InvalidEvent as error:
            raise ConfigError(f"{topic.name}/{record.partition}/{record.offset} cannot be read, so it is unknown what is in use: {error}") from None


def _mb(paths: Mapping[str, int]) -> str:
    return f"{sum(paths.values()) / 1e6:.1f}"
