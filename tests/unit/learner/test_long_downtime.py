"""A learner that was down for longer than Kafka keeps tombstones forgets what was deleted meanwhile."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from learner.ring.learner_inputs import LogFeed
from learner.settings import LearnerSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.clock import FixedClock
from streams.core.events import Label, Vote
from streams.core.part_context import PartContext
from streams.core.topics import LABELS
from tests.support.simulated_clients import at, install, producer
from tests.support.simulated_log import SimulatedLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def label(episode_id: str) -> Label:
    vote = Vote(feedback_id=f"f-{episode_id}", user_id="ann", kind="thumb", value=1.0, at=NOW)
    return Label.model_validate({"episode_id": episode_id, "policy": "default", "outcome": "completed", "answer": "a", "verdict": 1.0,
                                 "messages": [{"role": "user", "content": "hi"}], "votes": [vote], "episode_at": NOW, "first_feedback_at": NOW,
                                 "newest_feedback_at": NOW})  # fmt: skip


@pytest.mark.parametrize(("down_h", "reads_again"), [(1.0, False), (72.0, True)])
def test_an_answer_whose_tombstone_is_gone_is_dropped_at_the_start(
    down_h: float, reads_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = install(monkeypatch, SimulatedLog())
    settings = LearnerSettings(thumb_weight=1.0)

    def feed(now: datetime) -> LogFeed:
        context = PartContext(at("learner"), ArtifactStore(str(tmp_path)), "default", tmp_path, tmp_path, clock=FixedClock(now))
        return LogFeed(settings, context, producer(), "f" * 64)

    for episode_id in ("ep-1", "ep-2"):
        producer().publish(LABELS, label(episode_id))
    first = feed(NOW)
    first.read(0)
    assert len(first.labelled) == 2
    first.save()
    first.close()
    os.utime(tmp_path / "labels-offsets.json", (NOW.timestamp(),) * 2)
    for partition in range(log.count(LABELS.name)):  # compaction has taken the label and, a day later, its tombstone
        held = log.partitions[LABELS.name, partition]
        held.records[:] = [record for record in held.records if record.key != b"ep-1"]
    again = feed(NOW + timedelta(hours=down_h))
    assert len(again.labelled) == (1 if reads_again else 2)
    again.read(0)
    again.close()
    kept = (tmp_path / "judged.json").read_text()
    assert ("ep-1" in kept) is not reads_again
    assert "ep-2" in kept
