"""Erasure in the lake: files with an erased person's data are rewritten without it, under the same name and with the same offsets.

So the file names stay the lake's commit log, and a reader sees either the old or the new file. In each partition the oldest file is rewritten
last: after a kill the next start can still find out which versions had learned from the person.
"""

from collections import Counter
from collections.abc import Callable
from datetime import datetime

import structlog

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import InvalidEvent
from streams.core.events import AdapterVersion, Erased, Erasure, RewardModelVersion
from streams.core.topics import ADAPTERS, EPISODES, LABELS, REWARD_MODELS
from streams.erasure.forgotten_people import TOPICS_WITH_PEOPLE, Forgotten, record_without
from streams.join.join_settings import EvidenceSettings
from streams.kafka import Record
from streams.lake.parquet_lake import Lake

log = structlog.get_logger()


class LakeErasure:
    """Rewrites the lake's files without erased people, and reports what it removed."""

    def __init__(self, lake: Lake, artifacts: ArtifactStore, evidence: EvidenceSettings, heartbeat: Callable[[], None] = lambda: None) -> None:
        """``heartbeat`` is called before every file, since a large lake takes long."""
        self._lake, self._artifacts, self._evidence, self._heartbeat = lake, artifacts, evidence, heartbeat
        self.forgotten = Forgotten()
        """All erased people, for their records that arrive late."""

    def without_erased(self, records: list[Record]) -> list[Record]:
        """These records without the data of erased people."""
        return [record_without(record, self.forgotten, self._evidence) for record in records] if self.forgotten else records

    def erase(self, erasure: Erasure, arrived_ms: int, now: datetime) -> Erased:
        """Rewrite every file with this person's data. Raises Unavailable. Idempotent."""
        alone = Forgotten()
        alone.add(erasure, arrived_ms)
        removed: Counter[str] = Counter({topic.short_name: 0 for topic in TOPICS_WITH_PEOPLE})
        removed["media"] = sum(self._artifacts.remove(path) for path in self._media_of(alone))  # first: afterwards it is unknown whose they were
        first_label: dict[int, int] = {}
        first_ms: int | None = None
        for topic in TOPICS_WITH_PEOPLE:
            for file in reversed(self._lake.files(topic)):
                self._heartbeat()
                before = list(self._lake.records_of(topic, file))
                after = [record_without(record, alone, self._evidence) for record in before]
                changed = [old for old, new in zip(before, after, strict=True) if new is not old]
                if not changed:
                    continue
                if topic is LABELS:
                    first_label[file.partition] = min(changed[0].offset, first_label.get(file.partition, changed[0].offset))
                if topic is EPISODES:
                    first_ms = min(changed[0].timestamp_ms, changed[0].timestamp_ms if first_ms is None else first_ms)
                self._lake.rewrite(file, after)
                removed[topic.short_name] += len(changed)
        log.info("lake rewritten", **{name.replace("-", "_"): count for name, count in removed.items()})
        return Erased(
            person=erasure.person,
            part="lake",
            where="files",
            removed=dict(removed),
            learned=self._learned(first_label, first_ms),
            erasure_at=erasure.at,
            at=now,
        )

    def _media_of(self, forgotten: Forgotten) -> list[str]:
        """Artifacts of images and sounds that only they sent. An event's path is trusted only when it matches the event's own checksum."""
        theirs: set[str] = set()
        others: set[str] = set()
        for record in self._lake.records(EPISODES):
            if record.value is None or b'"media/' not in record.value:
                continue
            try:
                media = EPISODES.decode(record.value).media
            except InvalidEvent:
                continue
            kept = record_without(record, forgotten, self._evidence) is record
            (others if kept else theirs).update(
                f"media/{each.sha256}" for each in media if each.artifact and each.artifact.path == f"media/{each.sha256}"
            )
        return sorted(theirs - others)

    def _learned(self, first_label: dict[int, int], first_ms: int | None) -> tuple[str, ...]:
        """Reward models that had read a label of theirs, adapters trained with such a reward model, and adapters made since their first question."""
        models, names = set(), []
        for record in self._lake.records(REWARD_MODELS):
            version = _event(record)
            if isinstance(version, RewardModelVersion):
                seen = version.offsets.get(LABELS.name, {})
                if any(seen.get(partition, 0) > offset for partition, offset in first_label.items()):
                    models.add((version.policy, version.version))
                    names.append(f"reward model {version.policy}/{version.version}")
        for record in self._lake.records(ADAPTERS):
            adapter = _event(record)
            if isinstance(adapter, AdapterVersion):
                asked = first_ms is not None and record.timestamp_ms >= first_ms
                if asked or (adapter.policy, adapter.reward_model_version) in models:
                    names.append(f"adapter {adapter.name}")
        return tuple(dict.fromkeys(names))


def _event(record: Record) -> RewardModelVersion | AdapterVersion | None:
    try:
        return REWARD_MODELS.decode(record.value) if record.topic == REWARD_MODELS.name else ADAPTERS.decode(record.value)
    except InvalidEvent:
        return None
