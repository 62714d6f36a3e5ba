"""What Kafka's transactions would cost the join, beside what it does: ``python -m benchmarks.fencing``.

One turn of the join on an embedded Kafka: send labels, wait until they are acknowledged, commit the offsets of what they were made of. With a
transaction the offsets go into it, and Kafka refuses all of it from a member that is none any more (KIP-447). Milliseconds a turn, by its labels.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kafka

from benchmarks.streams import create, history
from infra.local.embedded_broker import Broker, BrokerSettings
from streams.core.events import Label, Outcome
from streams.core.topics import EPISODES
from streams.kafka import KafkaSettings, create_topics
from streams.kafka.producer import BATCH_BYTES

SIZES = (1, 10, 100, 1000)
TOPIC = "bench.fencing"


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=40, help="turns of each size")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fencing.json"))
    options = parser.parse_args()
    values = [label.encode() for label in labels(max(SIZES))]
    with tempfile.TemporaryDirectory() as folder, Broker(BrokerSettings(), Path(folder) / "broker") as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        create_topics(settings)
        create(settings, TOPIC)
        consumer = kafka.KafkaConsumer(EPISODES.name, **settings.client_options(), group_id="bench-fencing", enable_auto_commit=False)
        while not consumer.assignment():
            consumer.poll(timeout_ms=200)
        sides = {"flush and commit": plain(settings, consumer), "transaction": transactional(settings, consumer)}
        figures = {str(size): measure(sides, values[:size], options.turns) for size in SIZES}
        consumer.close()
    print(f"{'labels a turn':<16}" + "".join(f"{name + ', ms (p90)':>30}" for name in sides))
    for size, found in figures.items():
        print(f"{size:<16}" + "".join(f"{found[name]['median_ms']:>21.1f} ({found[name]['p90_ms']:.1f})" for name in sides))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")


def labels(count: int) -> list[Label]:
    """Of the size that the benchmark of the streams makes."""
    return [
        Label(episode_id=e.episode_id, policy="default", outcome=Outcome.COMPLETED, messages=e.messages, answer=e.answer, verdict=1.0,
              episode_at=e.ended_at, first_feedback_at=e.ended_at, newest_feedback_at=e.ended_at)
        for e in history(count)[0]
    ]  # fmt: skip


Turn = Callable[[list[bytes], int], None]


def plain(settings: KafkaSettings, consumer: Any) -> Turn:
    """As JoinSession does it."""
    producer = kafka.KafkaProducer(**settings.client_options(), acks="all", enable_idempotence=True, linger_ms=5, batch_size=BATCH_BYTES)

    def turn(values: list[bytes], offset: int) -> None:
        send(producer, values)
        producer.flush()
        consumer.commit(places(consumer, offset))

    return turn


def transactional(settings: KafkaSettings, consumer: Any) -> Turn:
    """Labels and offsets in one transaction."""
    producer = kafka.KafkaProducer(**settings.client_options(), acks="all", transactional_id="bench-fencing", linger_ms=5, batch_size=BATCH_BYTES)
    producer.init_transactions()

    def turn(values: list[bytes], offset: int) -> None:
        producer.begin_transaction()
        send(producer, values)
        producer.send_offsets_to_transaction(places(consumer, offset), consumer.group_metadata())
        producer.commit_transaction()

    return turn


def send(producer: Any, values: list[bytes]) -> None:
    for number, value in enumerate(values):
        producer.send(TOPIC, value=value, key=b"k", partition=number % 4)


def places(consumer: Any, offset: int) -> dict[Any, Any]:
    return {place: kafka.OffsetAndMetadata(offset, "", -1) for place in consumer.assignment()}


def measure(sides: dict[str, Turn], values: list[bytes], turns: int) -> dict[str, dict[str, float]]:
    """Milliseconds a turn of each side, which take turns in being first."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(turns):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            sides[name](values, number)
            took[name].append((time.perf_counter() - began) * 1000)
    return {name: {"median_ms": statistics.median(each), "p90_ms": statistics.quantiles(each, n=10)[8]} for name, each in took.items()}


if __name__ == "__main__":
    main()
