"""A real Prometheus scrapes a real run of the streams: every expression of every dashboard, and alerts by faults.

Reward, learner and actor stand in by what they count: a ``Metrics`` each, served as the part serves it, moving every second.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dashboards.alerts.alert_table import ALERTS
from dashboards.grafana.grafana_panels import dashboards
from infra.local.embedded_broker import Broker, BrokerSettings, free_port
from streams.core.errors import Unavailable
from streams.core.events import Episode, Feedback, FeedbackKind, Message, new_id
from streams.core.health import Health, serve
from streams.core.metrics import TABLE, Metrics
from streams.core.topics import EPISODES, FEEDBACK
from streams.kafka import KafkaSettings, Producer, create_topics
from streams.outbox.outbox import Outbox
from streams.outbox.outbox_settings import OutboxSettings
from tests.operators.prometheus import Prometheus, until
from tests.operators.stand_in import move

ROOT = Path(__file__).parents[2]
STAND_INS = sorted({row.part for row in TABLE} - {"streams", "learner"})
"""In this process; the learner stands in as one of its own, to be killed."""


@dataclass
class Run:
    """The streams as a process, what stands in for the rest, and the Prometheus that watches them."""

    broker: Broker
    kafka: KafkaSettings
    streams: subprocess.Popen[bytes]
    streams_port: int
    prometheus: Prometheus
    stopping: threading.Event
    learner: subprocess.Popen[bytes]
    replica: Metrics
    """Of a second actor."""
    drifting: threading.Event = field(default_factory=threading.Event)

    def values(self, expression: str) -> list[float]:
        return self.prometheus.values(expression)

    def firing(self) -> set[str]:
        return self.prometheus.firing()


def talk(producer: Producer) -> None:
    """One answer with a thumb, one of both twice, and one thumb without an answer."""
    now, episode_id = datetime.now(UTC), new_id("ep")
    episode = Episode(episode_id=episode_id, messages=(Message(role="user", content="x"),), answer="y", started_at=now, ended_at=now)
    thumb = Feedback(feedback_id=new_id("fb"), episode_id=episode_id, kind=FeedbackKind.THUMB, thumb="up", at=now)
    for topic, event in ((EPISODES, episode), (FEEDBACK, thumb), (EPISODES, episode), (FEEDBACK, thumb)):
        producer.send(topic, event)
    producer.send(FEEDBACK, Feedback(feedback_id=new_id("fb"), episode_id=new_id("ep"), kind=FeedbackKind.THUMB, thumb="down", at=now))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("run")
    with Broker(BrokerSettings(), folder / "broker") as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        create_topics(kafka)
        port, stopping = free_port(), threading.Event()
        (folder / "base").mkdir()
        settings = {"run_folder": folder, "policy.base": folder / "base", "kafka.bootstrap_servers": broker.bootstrap_servers,
                    "metrics_port": port, "lake.flush_s": 1, "join.expire_every_s": 1, "join.ledger_every_s": 2}  # fmt: skip
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        with (folder / "streams.log").open("wb") as log:
            streams = subprocess.Popen([sys.executable, "-P", "-m", "infra.cli", "run", "streams", *words], cwd=ROOT, stderr=log,
                                       env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
        served, replica, learner_port = {part: Metrics() for part in STAND_INS}, Metrics(), free_port()
        learner = subprocess.Popen([sys.executable, "-m", "tests.operators.stand_in", "learner", str(learner_port)], cwd=ROOT)
        targets = {"streams": f"127.0.0.1:{port}"} | {part: f"127.0.0.1:{serve(metrics, Health())}" for part, metrics in served.items()}
        targets["learner"] = f"127.0.0.1:{learner_port}"
        prometheus = Prometheus(folder / "prometheus", targets, f"127.0.0.1:{serve(replica, Health())}")
        found = Run(broker, kafka, streams, port, prometheus, stopping, learner, replica)

        def keep_moving() -> None:
            producer = Producer(kafka, Metrics(), "test")
            while not stopping.wait(1.0):
                for part, metrics in served.items():
                    move(metrics, part)
                served["reward"].set("tidemill_reward_drift_alarm", float(found.drifting.is_set()))
                talk(producer)
            producer.close(timeout_s=1)

        moving = threading.Thread(target=keep_moving, daemon=True)
        moving.start()
        try:
            yield found
        finally:
            stopping.set()
            moving.join(20)
            for process in (streams, learner, prometheus.process):
                process.terminate()
                process.wait(30)


@pytest.fixture(scope="module")
def settled(run: Run) -> Run:
    """Half a minute later: rates need two scrapes of everything, and dead letters a thumb that expired."""

    def scraped() -> bool:
        try:
            return len(run.values("up == 1")) == 3 + len(STAND_INS) and run.values("rate(tidemill_thumb_to_label_seconds_count[20s]) > 0") != []
        except OSError:
            return False

    until(scraped, 90, "Prometheus to scrape all parts, and labels to flow")
    producer = Producer(run.kafka, Metrics(), "test")
    for _ in range(2):  # the first letter of a series is where it begins; a rate needs a second
        producer.send_raw(FEEDBACK.name, b"k", b"not json")
        producer.flush()
        time.sleep(8)
    producer.close()
    return run


EXPRESSIONS = sorted(
    {
        target["expr"]
        for model in dashboards().values()
        for panel in model["panels"]
        for target in panel["targets"]
        if not re.search(r"\b(vllm:|ray_|tidemill_lake_compactions)|part=\"actor\"", target["expr"])
    }  # vLLM's and Ray's stand in nowhere; the guide's test has them
    | {mark["expr"] for model in dashboards().values() for mark in model["annotations"]["list"]}
)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_of_every_dashboard_has_an_answer_with_numbers(settled: Run, expression: str) -> None:
    assert settled.values(expression.replace("$__rate_interval", "60s").replace("$replica", ".*").replace("$policy", ".*"))


def test_every_rule_is_evaluated_without_error_and_a_well_run_raises_no_alarm(settled: Run) -> None:
    (group,) = settled.prometheus.ask("rules")["groups"]
    assert {rule["name"]: rule["health"] for rule in group["rules"]} == {alert.name: "ok" for alert in ALERTS}
    stand_in = {
        "TidemillAdaptersRefused",
        "TidemillCaptureSkipping",
        "TidemillLearnerStuck",
        "TidemillOutboxLosing",
    }  # every counter of a stand-in moves
    assert settled.firing() - stand_in <= {"TidemillDeadLettersRising"}, "two bad records in half a minute of a small run are many"


def test_the_streams_are_ready_and_say_so(settled: Run) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{settled.streams_port}/readyz", timeout=5) as answer:
        assert json.load(answer) == {"status": "ready", "missing": []}


def test_bad_records_make_dead_letters_rise(settled: Run) -> None:
    producer = Producer(settled.kafka, Metrics(), "test")
    for _ in range(40):
        producer.send_raw(FEEDBACK.name, b"k", b"not json")
    producer.flush()
    producer.close()
    until(lambda: "TidemillDeadLettersRising" in settled.firing(), 30, "TidemillDeadLettersRising")


def test_a_drifting_reward_model_is_told(settled: Run) -> None:
    settled.drifting.set()
    until(lambda: "TidemillRewardModelDrifting" in settled.firing(), 20, "TidemillRewardModelDrifting")


def test_replicas_that_serve_different_versions_are_told(settled: Run) -> None:
    settled.replica.set("tidemill_serving_version", 2, policy="x")
    until(lambda: "TidemillReplicaSkew" in settled.firing(), 20, "TidemillReplicaSkew")
    settled.replica.set("tidemill_serving_version", 1, policy="x")
    until(lambda: "TidemillReplicaSkew" not in settled.firing(), 20, "its end")


def test_an_outbox_that_cannot_send_and_fills_is_told(settled: Run, tmp_path: Path) -> None:
    def away() -> Producer:
        raise Unavailable("Kafka is away")

    message = Message(role="user", content="x")

    def put(outbox: Outbox, count: int) -> None:
        for _ in range(count):
            now = datetime.now(UTC)
            assert outbox.put(EPISODES, Episode(episode_id=new_id("ep"), messages=(message,), started_at=now, ended_at=now))

    def told() -> bool:
        put(outbox, 20)
        return "TidemillOutboxFilling" in settled.firing()

    roomy = OutboxSettings(outbox_events=100_000)
    before = Outbox(tmp_path / "outbox.sqlite", away, Metrics(), "actor", roomy)
    put(before, 200)
    before.close(0.1)
    outbox = Outbox(tmp_path / "outbox.sqlite", away, settled.replica, "actor", roomy)
    until(told, 60, "TidemillOutboxFilling")
    outbox.close(0.1)


def test_a_learner_that_is_killed_is_told(settled: Run) -> None:
    settled.learner.kill()
    settled.learner.wait(10)
    until(lambda: "TidemillLearnerDead" in settled.firing(), 30, "TidemillLearnerDead")


def test_a_broker_that_is_away_and_streams_that_are_dead_are_told(settled: Run) -> None:
    settled.stopping.set()
    settled.broker.kill()
    until(lambda: "TidemillBrokerAway" in settled.firing(), 60, "TidemillBrokerAway")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{settled.streams_port}/readyz", timeout=5)
    assert (refused.value.code, "kafka" in json.load(refused.value)["missing"]) == (503, True)
    settled.streams.send_signal(signal.SIGKILL)
    until(lambda: "TidemillPartDead" in settled.firing(), 30, "TidemillPartDead")
