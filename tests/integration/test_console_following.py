"""The console follows a real log through a broker that goes away: it says that its facts may be old, and counts nothing twice."""

import time
from collections.abc import Callable
from pathlib import Path

from dashboards.console.console_facts import ConsoleFacts
from dashboards.console.log_following import LogFollowing
from infra.build.reference_pages import EXAMPLES
from infra.local.embedded_broker import Broker, BrokerSettings, free_port
from streams.core.metrics import Metrics
from streams.core.topics import FEEDBACK
from streams.kafka import KafkaSettings, Producer, create_topics


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.2)


def publish(kafka: KafkaSettings, count: int) -> None:
    producer = Producer(kafka, Metrics(), "test")
    for number in range(count):
        producer.send(FEEDBACK, FEEDBACK.event.model_validate({**EXAMPLES["feedback"], "episode_id": f"ep-{number}"}))
    producer.flush()
    producer.close()


def test_a_broker_that_goes_away_is_told_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    settings = BrokerSettings(port=free_port())
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{settings.port}", request_timeout_s=5)
    facts = ConsoleFacts()
    following = LogFollowing(kafka, facts, Metrics())
    broker = Broker(settings, tmp_path / "broker")
    broker.start()
    try:
        create_topics(kafka)
        publish(kafka, 20)
        following.start()
        wait_for(lambda: following.failure is None and facts.totals[FEEDBACK.name] == 20, 60, "the first 20")
        broker.kill()
        wait_for(lambda: following.failure is not None, 60, "word of the broker being away")
        broker.start()
        publish(kafka, 5)
        wait_for(lambda: following.failure is None and facts.totals[FEEDBACK.name] >= 25, 90, "the other 5")
        assert facts.totals[FEEDBACK.name] == 25
    finally:
        following.stop()
        broker.stop()
