"""Joins with disks of their own take over from each other at any moment: the books balance each time, and in the end no trace is left."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import Unavailable
from streams.core.events import Episode
from streams.core.part_context import PartContext
from streams.core.topics import DEAD_LETTERS, EPISODES, FEEDBACK, LABELS
from streams.join import join_loop as joiner
from streams.join.join_settings import JoinSettings
from streams.join.ledger import balance, ledger_entries
from streams.kafka import Consumer, KafkaSettings
from tests.chaos.history import history, undisturbed
from tests.unit.streams.test_erasure_ring import Kafka

T0 = datetime.now(UTC) - timedelta(hours=1)  # nothing is given after it arrives


class Turns:
    """Ends a join after so many polls: in good order, or just before it tells Kafka what it has done, as a kill does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.killed, self.context = 0, False, None
        poll, commit = Consumer.poll, Consumer.commit

        def counted(consumer: Consumer, *given: Any, **options: Any) -> Any:
            if self.context is not None and consumer._grouped:
                self.left -= 1
                if self.left <= 0:
                    self.context.stopping.set()
            return poll(consumer, *given, **options)

        def refused(consumer: Consumer, positions: Any = None) -> bool:
            if self.killed and self.left <= 0:
                raise Unavailable("killed")
            return commit(consumer, positions)

        monkeypatch.setattr(Consumer, "poll", counted)
        monkeypatch.setattr(Consumer, "commit", refused)


@pytest.mark.parametrize("seed", range(4))
def test_whoever_takes_over_whenever_nothing_is_lost(seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kafka, turns, chance = Kafka(monkeypatch, random.Random(seed)), Turns(monkeypatch), random.Random(seed)
    events, producer = history(chance, 60, T0), kafka.producer()
    expected, published, takeovers = undisturbed(events, T0), 0, 0
    told: dict[tuple[str, int], int] = {}
    while published < len(events) or standing(kafka) != expected:
        for event in events[published : published + chance.randint(0, 25)]:
            producer.send(EPISODES if isinstance(event, Episode) else FEEDBACK, event)
            published += 1
        producer.flush()
        folder = tmp_path / chance.choice(["here", "there", "elsewhere"])
        turns.left, turns.killed = chance.randint(3, 12), chance.random() < 0.5
        turns.context = context = PartContext(
            KafkaSettings(bootstrap_servers="nobody:1"), ArtifactStore(str(tmp_path / "artifacts")), "default", tmp_path, folder / "state"
        )
        joiner.run(JoinSettings(batch_records=chance.randint(1, 20), expire_every_s=0.001), context)
        takeovers += 1
        assert takeovers < 2000, [name for name, label in expected.items() if standing(kafka).get(name) != label]
        assert all(kafka.passed.get(key, 0) >= offset for key, offset in told.items())
        told = kafka.passed
        episodes, feedback = ledger_entries(kafka.records(EPISODES)), ledger_entries(kafka.records(FEEDBACK))
        books = balance(episodes, feedback, kafka.records(LABELS), kafka.records(DEAD_LETTERS), told)
        assert books.balanced, str(books)
    assert takeovers > 5
    assert kafka.records(DEAD_LETTERS) == []


def standing(kafka: Kafka) -> dict[str, Any]:
    """The newest label of each episode."""
    return {label.episode_id: label for record in kafka.records(LABELS) for label in [LABELS.decode(record.value)]}
