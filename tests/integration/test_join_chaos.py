"""The join under load and kill -9: the labels are those of an undisturbed run, and the books balance."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.local.embedded_broker import Broker, BrokerSettings, free_port
from streams.core.events import Episode, Feedback, FeedbackKind, Message
from streams.core.metrics import Metrics
from streams.core.topics import EPISODES, FEEDBACK, LABELS
from streams.join.ledger import read_ledger
from streams.kafka import KafkaSettings, Producer, create_topics, read_to_end
from tests.chaos.history import history, newest, undisturbed
from tests.support.running import wait_for

T0 = datetime.now(UTC) - timedelta(hours=1)  # nothing is given after it arrives
CHILD = """
import os, signal, sys
from pathlib import Path
from streams.join import join_loop as joiner
from streams.artifacts.artifact_store import ArtifactStore
from streams.join.join_settings import JoinSettings
from streams.kafka import KafkaSettings, Producer
from streams.core.part_context import PartContext
kafka = KafkaSettings(bootstrap_servers=sys.argv[1], session_timeout_s=6, request_timeout_s=10, delivery_timeout_s=20)
state = Path(sys.argv[2])
if len(sys.argv) > 3:  # stop dead, as a machine that is put to sleep, just before the first label is sent
    send = Producer.send
    def send_after_waking(producer, topic, *given):
        if topic.name == "tidemill.labels.v1" and not (state / "slept").exists():
            (state / "slept").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return send(producer, topic, *given)
    Producer.send = send_after_waking
joiner.run(JoinSettings(batch_records=100), PartContext(kafka, ArtifactStore(sys.argv[2]), "default", state, state))
"""


@pytest.fixture
def mortal_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker on a port of its own, so that it comes back where its clients look for it."""
    with Broker(BrokerSettings(port=free_port()), tmp_path / "broker") as broker:
        yield broker


def test_labels_survive_kills_of_the_join_and_of_the_broker(mortal_broker: Broker, tmp_path: Path) -> None:
    """Two joins, one of them on another machine's disk, killed in turn and together; the broker once."""
    settings = KafkaSettings(bootstrap_servers=mortal_broker.bootstrap_servers, delivery_timeout_s=60)
    create_topics(settings)
    chance = random.Random(11)
    events = history(chance, 1500, T0)
    expected = undisturbed(events, T0)
    children: dict[str, subprocess.Popen[bytes]] = {}

    def start(place: str) -> None:
        (tmp_path / place).mkdir(exist_ok=True)
        children[place] = subprocess.Popen([sys.executable, "-P", "-c", CHILD, mortal_broker.bootstrap_servers, str(tmp_path / place)])

    def kill(place: str) -> None:
        children[place].kill()
        children[place].wait()

    producer, kills = Producer(settings, Metrics(), "load"), 0
    try:
        start("here")
        start("there")
        for first in range(0, len(events), 60):
            for event in events[first : first + 60]:
                producer.send(EPISODES if isinstance(event, Episode) else FEEDBACK, event)
            time.sleep(0.4)
            if first == 1200:
                mortal_broker.kill()
                mortal_broker.start()
            if chance.random() < 0.25:
                for place in chance.choice([["here"], ["there"], ["here", "there"]]):
                    kill(place)
                    start(place)
                    kills += 1
        producer.flush()
        until = time.monotonic() + 120
        while (books := read_ledger(settings)).rows[0].pending or books.rows[1].pending or newest(settings) != expected:
            assert time.monotonic() < until, f"{books}\nafter {kills} kills"
            assert books.balanced, books
            time.sleep(1)
    finally:
        for place in children:
            kill(place)
        producer.close()
    assert kills >= 5
    assert books.balanced
    assert books.rows[1].joined == sum(len(label.feedback_ids) for label in expected.values())


def test_a_join_that_sleeps_before_it_sends_its_labels_and_wakes_too_late_spoils_nothing(mortal_broker: Broker, tmp_path: Path) -> None:
    settings = KafkaSettings(bootstrap_servers=mortal_broker.bootstrap_servers)
    create_topics(settings)
    now = datetime.now(UTC)
    episode = Episode(episode_id="ep", messages=(Message(role="user", content="hello"),), answer="hi", started_at=now, ended_at=now)

    def known() -> list[int]:
        """How much feedback each label knows, in the order of the log."""
        return [len(LABELS.decode(record.value).feedback_ids) for record in read_to_end(settings, LABELS, "test", Metrics())]

    def join(place: str, *more: str) -> "subprocess.Popen[bytes]":
        (tmp_path / place).mkdir()
        return subprocess.Popen([sys.executable, "-P", "-c", CHILD, mortal_broker.bootstrap_servers, str(tmp_path / place), *more])

    producer = Producer(settings, Metrics(), "load")
    producer.publish(EPISODES, episode)
    producer.publish(FEEDBACK, thumb(1, now))
    joins = [join("here", "sleepy")]
    try:
        wait_for((tmp_path / "here" / "slept").exists)
        producer.publish(FEEDBACK, thumb(2, now))
        joins.append(join("there"))
        wait_for(lambda: known()[-1:] == [2])
        before = len(known())
        joins[0].send_signal(signal.SIGCONT)
        wait_for(lambda: 1 in known()[before:])  # it woke, and wrote what it had folded before it slept
        wait_for(lambda: known()[-1] == 2)
        wait_for(lambda: not any(row.pending or row.missing for row in read_ledger(settings).rows))
    finally:
        for each in joins:
            each.kill()
            each.wait()
        producer.close()


def thumb(number: int, at: datetime) -> Feedback:
    return Feedback(feedback_id=f"fb-{number}", episode_id="ep", user_id=f"u{number}", kind=FeedbackKind.THUMB, thumb="up", at=at)
