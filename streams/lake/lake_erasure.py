"""Erasure in the lake: files with an erased person's data are rewritten without it, columns included, under the same name and with the same offsets.

So the file names stay the lake's commit log, and a reader sees either the old or the new file. In each partition the oldest file is rewritten
last: after a kill the next start can still find out which versions had learned from the person.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import InvalidEvent
from streams.core.events import AdapterVersion, Erased, Erasure, RewardModelVersion
from streams.core.topics import ADAPTERS, EPISODES, LABELS, REWARD_MODELS, Topic
from streams.erasure.erasure_follower import ErasureRequest
from streams.erasure.forgotten_people import TOPICS_WITH_PEOPLE, Forgotten, people_named, record_without
from streams.join.join_settings import EvidenceSettings
from streams.kafka import Record
from streams.lake.parquet_lake import Lake

log = structlog.get_logger()


class LakeErasure:
    """Rewrites the lake's files without erased people, and reports what it removed."""

    def __init__(self, lake: Lake, artifacts: ArtifactStore, evidence: EvidenceSettings, heartbeat: Callable[[], None] = lambda: None,
                 where: str = "files") -> None:  # fmt: skip
        """``heartbeat`` is called before every file, since a large lake takes long. ``where`` names this lake in its reports."""
        self.where = where
        self._lake, self._artifacts, self._evidence, self._heartbeat = lake, artifacts, evidence, heartbeat
        self.forgotten = Forgotten()
        """All erased people, for their records that arrive late."""

    def without_erased(self, records: list[Record]) -> list[Record]:
        """These records without the data of erased people."""
        return [record_without(record, self.forgotten, self._evidence) for record in records] if self.forgotten else records

    def erase(self, erasure: Erasure, arrived_ms: int, now: datetime) -> Erased:
        """Rewrite every file with this person's data. Raises Unavailable. Idempotent."""
        return self.erase_all([ErasureRequest(erasure, -1, arrived_ms)], now)[0]

    def erase_all(self, asked: Sequence[ErasureRequest], now: datetime) -> list[Erased]:
        """The same for several people in one pass over the files, however many they are; one report each."""
        everybody = _Erasing(asked)
        kept_media = self._media_of(everybody)  # first: afterwards it is unknown whose they were
        for path, whose in kept_media.items():
            count = int(self._artifacts.remove(path))
            for each in whose:
                everybody.removed[each]["media"] += count
        for topic in TOPICS_WITH_PEOPLE:
            self._lake.tidy(topic)  # what a merge left behind would be counted twice
            for file in reversed(self._lake.files(topic)):
                self._heartbeat()
                named = 0
                for record in self._lake.records_of(topic, file):
                    if self._without(record, everybody) is not record:
                        everybody.note(topic, file.partition, record, self._evidence)
                        named += 1
                if named:
                    self._lake.rewrite(topic, file, lambda record: self._without(record, everybody))
        log.info("lake rewritten", people=len(asked), **{name.replace("-", "_"): sum(c[name] for c in everybody.removed) for name in _kinds()})
        models, adapters = self._versions()
        return [
            Erased(
                person=each.erasure.person,
                part="lake",
                where=self.where,
                removed=dict(everybody.removed[number]),
                learned=_learned(models, adapters, everybody.first_label[number], everybody.first_ms[number]),
                erasure_at=each.erasure.at,
                at=now,
            )
            for number, each in enumerate(asked)
        ]

    def _without(self, record: Record, everybody: "_Erasing") -> Record:
        return record_without(record, everybody.forgotten, self._evidence)

    def _media_of(self, everybody: "_Erasing") -> dict[str, set[int]]:
        """Artifacts of images and sounds that only erased people sent, and who did. An event's path is trusted only when it matches the event's own
        checksum."""
        theirs: dict[str, set[int]] = {}
        others: set[str] = set()
        for record in self._lake.records(EPISODES):
            if record.value is None or b'"media/' not in record.value:
                continue
            try:
                media = EPISODES.decode(record.value).media
            except InvalidEvent:
                continue
            paths = {f"media/{each.sha256}" for each in media if each.artifact and each.artifact.path == f"media/{each.sha256}"}
            if record_without(record, everybody.forgotten, self._evidence) is record:
                others |= paths
            else:
                for path in paths:
                    theirs.setdefault(path, set()).update(everybody.whose(record, self._evidence))
        return {path: whose for path, whose in sorted(theirs.items()) if path not in others}

    def _versions(self) -> tuple[list[RewardModelVersion], list[tuple[AdapterVersion, int]]]:
        """All reward models, and all adapters with their arrival times."""
        models = [event for record in self._lake.records(REWARD_MODELS) if isinstance(event := _event(record), RewardModelVersion)]
        adapters = [(event, record.timestamp_ms) for record in self._lake.records(ADAPTERS) if isinstance(event := _event(record), AdapterVersion)]
        return models, adapters


def _kinds() -> list[str]:
    return [*(topic.short_name for topic in TOPICS_WITH_PEOPLE), "media"]


class _Erasing:
    """People who are erased together, and what was removed of each."""

    def __init__(self, asked: Sequence[ErasureRequest]) -> None:
        self.forgotten, self._alone = Forgotten(), [Forgotten() for _ in asked]
        self._numbers: defaultdict[str, set[int]] = defaultdict(set)
        for number, each in enumerate(asked):
            for forgotten in (self.forgotten, self._alone[number]):
                forgotten.add(each.erasure, each.arrived_ms)
            for person in each.erasure.people:
                self._numbers[person].add(number)
        self.removed = [Counter(dict.fromkeys(_kinds(), 0)) for _ in asked]
        self.first_label: list[dict[int, int]] = [{} for _ in asked]
        self.first_ms: list[int | None] = [None] * len(asked)

    def whose(self, record: Record, evidence: EvidenceSettings) -> set[int]:
        """Whose erasure changes this record: only those whom it names are tried."""
        named = {number for person in people_named(record) for number in self._numbers.get(person, ())}
        return {number for number in named if record_without(record, self._alone[number], evidence) is not record}

    def note(self, topic: Topic[Any], partition: int, record: Record, evidence: EvidenceSettings) -> None:
        """Count a record that is rewritten, for each person that it is rewritten for."""
        for number in self.whose(record, evidence):
            self.removed[number][topic.short_name] += 1
            if topic is LABELS:
                first = self.first_label[number]
                first[partition] = min(record.offset, first.get(partition, record.offset))
            if topic is EPISODES:
                before = self.first_ms[number]
                self.first_ms[number] = record.timestamp_ms if before is None else min(before, record.timestamp_ms)


def _learned(
    versions: Sequence[RewardModelVersion], adapters: Sequence[tuple[AdapterVersion, int]], first_label: Mapping[int, int], first_ms: int | None
) -> tuple[str, ...]:
    """Reward models that had read a label of theirs, adapters trained with such a reward model, and adapters made since their first question."""
    models, names = set(), []
    for version in versions:
        seen = version.offsets.get(LABELS.name, {})
        if any(seen.get(partition, 0) > offset for partition, offset in first_label.items()):
            models.add((version.policy, version.version))
            names.append(f"reward model {version.policy}/{version.version}")
    for adapter, arrived_ms in adapters:
        if (first_ms is not None and arrived_ms >= first_ms) or (adapter.policy, adapter.reward_model_version) in models:
            names.append(f"adapter {adapter.name}")
    return tuple(dict.fromkeys(names))


def _event(record: Record) -> RewardModelVersion | AdapterVersion | None:
    try:
        return REWARD_MODELS.decode(record.value) if record.topic == REWARD_MODELS.name else ADAPTERS.decode(record.value)
    except InvalidEvent:
        return None
