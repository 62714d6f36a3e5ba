"""The updater's steps on a log in memory: labels in, versions out, without Kafka, Faust and a backbone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from reward.features.featurizer import Features
from reward.settings import RewardSettings
from reward.updater import batch_steps
from reward.updater.batch_steps import BatchSteps
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import Label, RewardModelVersion
from streams.core.part_context import PartContext
from streams.core.topics import LABELS, REWARD_MODELS
from streams.kafka import KafkaSettings, Record
from streams.kafka.partitioning import partition_of
from tests.support.simulated_clients import install
from tests.support.simulated_log import SimulatedLog


class LabelWorld:
    """A log of labels, an artifact store, and updaters that come and go."""

    def __init__(self, folder: Path, settings: RewardSettings, features: Features, partitions: int = 4) -> None:
        kafka = KafkaSettings(bootstrap_servers="updater:1", partitions=partitions)
        self.log, self.settings, self._features, self._partitions = SimulatedLog(settings=kafka), settings, features, partitions
        self.context = PartContext(kafka, ArtifactStore(str(folder / "artifacts")), "default", folder, folder)
        self.taken: dict[tuple[str, int], int] = {}
        """What the updaters' group has committed."""
        self.stored: dict[str, bytes] = {}
        """Their table."""

    def add(self, labels: Sequence[Label]) -> None:
        """Labels go onto the log."""
        for label in labels:
            self.log.append(LABELS.name, partition_of(key := label.key.encode(), self._partitions), key, label.encode())

    @contextmanager
    def updater(self) -> Iterator[BatchSteps]:
        """A new updater that holds all partitions and has recovered what is stored."""
        with (
            pytest.MonkeyPatch.context() as clients,
            patch.object(batch_steps, "committed_offsets", lambda *_: dict(self.taken)),
            patch.object(batch_steps, "end_offsets", lambda *_: self.ends()),
            patch.object(batch_steps, "features_of_part", lambda *_: self._features),
        ):
            install(clients, self.log)
            steps = BatchSteps(self.settings, self.context)
            assert steps.recover(list(self.stored.values()), held=self._partitions)
            yield steps

    def lose_state(self) -> None:
        """Another layout of entries, or other features: another group and another table, which hold nothing."""
        self.taken.clear()
        self.stored.clear()

    def ends(self) -> dict[int, int]:
        """Next offset of each partition."""
        return {number: held.end for (topic, number), held in self.log.partitions.items() if topic == LABELS.name}

    def left(self) -> list[Record]:
        """The records that the group has not committed, in the order in which they were written."""
        records = [record for record in self.log.records(LABELS) if record.offset >= self.taken.get((LABELS.name, record.partition), 0)]
        return sorted(records, key=lambda record: record.timestamp_ms)

    def read(self, steps: BatchSteps, batch: int) -> None:
        """The updater reads everything that is left, ``batch`` records at a time, and commits each batch."""
        left = self.left()
        for begin in range(0, len(left), batch):
            records = left[begin : begin + batch]
            prepared = steps.prepare(records)
            for episode_id, value in steps.absorb(prepared).items():
                if value is None:
                    self.stored.pop(episode_id, None)
                else:
                    self.stored[episode_id] = value
            steps.finish(prepared, holds_all_labels=True)
            self.taken.update({(LABELS.name, record.partition): record.offset + 1 for record in records})

    def versions(self) -> list[RewardModelVersion]:
        """Everything published so far."""
        return self.log.events(REWARD_MODELS)
