"""The books of a real log, while the join works and after."""

import json
import random
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import Episode, Feedback, FeedbackKind, Message, new_id
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import EPISODES, FEEDBACK
from streams.join import join_loop as joiner
from streams.join.join_settings import JoinSettings
from streams.join.ledger import read_ledger
from streams.kafka import KafkaSettings, Producer
from tests.support.running import running


def test_the_books_balance_at_every_moment_and_end_with_nothing_pending_but_the_lost(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    context = PartContext(kafka_settings, ArtifactStore(str(tmp_path)), "default", tmp_path, tmp_path / "state")
    producer, chance = Producer(kafka_settings, Metrics(), "test"), random.Random(7)
    before, began = read_ledger(kafka_settings), datetime.now(UTC)
    assert before.balanced, before
    lost = 0
    with running(partial(joiner.run, JoinSettings(batch_records=50)), context):
        for _ in range(400):
            now, episode_id = datetime.now(UTC), new_id("ep")
            given = Feedback(feedback_id=new_id("fb"), episode_id=episode_id, kind=FeedbackKind.THUMB, thumb="up", at=now)
            message = Message(role="user", content="x")
            steps = [(EPISODES, Episode(episode_id=episode_id, messages=(message,), started_at=now, ended_at=now)), (FEEDBACK, given)]
            chance.shuffle(steps)
            if chance.random() < 0.1:
                steps, lost = [(FEEDBACK, given)], lost + 1
            for topic, event in steps + steps[: chance.randint(0, 1)]:
                producer.send(topic, event)
            if chance.random() < 0.1:
                producer.send_raw(FEEDBACK.name, b"k", json.dumps({"schema_version": 2}).encode())
            if chance.random() < 0.02:
                producer.flush()
                assert (now_it_is := read_ledger(kafka_settings)).balanced, now_it_is
        producer.flush()
        until = time.monotonic() + 60
        while (after := read_ledger(kafka_settings)).rows[0].pending or after.rows[1].pending > before.rows[1].pending + lost:
            assert time.monotonic() < until, after
            time.sleep(0.5)
        assert after.balanced, after
        lately = read_ledger(kafka_settings, began, read_from=began)
        assert lately.missing == ()
        assert (lately.rows[0].joined, lately.rows[1].joined) == tuple(
            new.joined - old.joined for new, old in zip(after.rows, before.rows, strict=True)
        )
        nothing = read_ledger(kafka_settings, later := datetime.now(UTC) + timedelta(hours=1), read_from=later)
        assert [row.published for row in nothing.rows] == [0, 0]
    producer.close()
    assert after.rows[1].pending == before.rows[1].pending + lost
    assert after.rows[1].joined == before.rows[1].joined + 400 - lost
    assert after.rows[1].dead_lettered > before.rows[1].dead_lettered
