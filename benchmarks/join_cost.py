"""What the join itself costs, without a broker: ``python -m benchmarks.join_cost``.

Records go in, labels come out of PartitionProcessor on a real disk; Kafka's client is left out. The figure that is promised is a ratio: how many
times as long as a plain loop that only reads the same records with ``json`` and writes the same labels with it. ``--profile`` shows where it goes.
"""

import argparse
import cProfile
import json
import pstats
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.streams import history
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import Event
from streams.core.part_context import PartContext
from streams.core.topics import EPISODES, FEEDBACK, LABELS, Topic
from streams.core.traces import Headers
from streams.erasure.forgotten_people import Forgotten
from streams.join.join_loop import collect_seldom
from streams.join.join_settings import JoinSettings
from streams.join.partition_processor import PartitionProcessor
from streams.kafka import KafkaSettings, Record, RecordPlace
from streams.kafka.dead_letters import DeadLetters


class Sink:
    """Takes labels at once. Satisfies Publisher."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, topic: Topic[Any], event: Event, headers: Headers = ()) -> Callable[[], RecordPlace]:
        return self.send_raw(topic.name, event.key.encode(), event.encode(), headers)

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Callable[[], RecordPlace]:
        self.sent.append(value or b"")
        place = RecordPlace(topic, 0, len(self.sent) - 1)
        return lambda: place

    def retract(self, topic: Topic[Any], key: str) -> Callable[[], RecordPlace]:
        return self.send_raw(topic.name, key.encode(), None)

    def flush(self) -> None:
        return None


def main() -> None:
    """Measure, and print both costs and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000, help="episodes, and as many feedback events")
    parser.add_argument("--turns", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--profile", action="store_true", help="show what the time goes to")
    options = parser.parse_args()
    records = arriving(options.events)
    collect_seldom()  # as join_loop does
    if options.profile:
        with cProfile.Profile() as profile:
            join(records)
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        return
    ours, plain = [], []
    for _ in range(options.turns):
        plain.append(timed(lambda: plain_loop(records)) / len(records) * 1e6)
        ours.append(timed(lambda: join(records)) / len(records) * 1e6)
    print(f"join and label {min(ours):6.1f} µs an event, plain json loop {min(plain):6.1f} µs: {min(ours) / min(plain):.2f} times")


def arriving(count: int) -> list[Record]:
    """Episodes and their thumbs as a join that catches up gets them: some hundreds of the one topic, then of the other."""
    episodes, feedback = history(count)
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    found: list[Record] = []
    for first in range(0, count, 500):
        for topic, events in ((EPISODES, episodes), (FEEDBACK, feedback)):
            for offset, event in enumerate(cast(list[Event], events)[first : first + 500], first):
                found.append(Record(topic.name, 0, offset, now_ms, event.key.encode(), event.encode()))
    return found


def join(records: list[Record]) -> None:
    """As JoinSession does it, turn by turn, with one partition."""
    with tempfile.TemporaryDirectory() as folder:
        kafka = KafkaSettings(bootstrap_servers="none:1", partitions=1)
        context = PartContext(kafka, ArtifactStore(folder), "default", Path(folder), Path(folder) / "state")
        settings, sink = JoinSettings(), Sink()
        erasures: Any = SimpleNamespace(forgotten=Forgotten(), end=0)
        part = PartitionProcessor(0, settings, context, DeadLetters(sink, context.clock, context.metrics, "join"), erasures)
        for first in range(0, len(records), settings.batch_records):
            for record in records[first : first + settings.batch_records]:
                part.take(record)
            part.publish(sink)
            part.settle(sink)
            part.commit()
        part.close()
        assert len(sink.sent) == len(records) / 2
        assert LABELS.decode(sink.sent[-1]).votes


def plain_loop(records: list[Record]) -> None:
    """What no join in Python can do without: read the JSON, look the episode up, write the label."""
    episodes: dict[str, dict[str, Any]] = {}
    sent = []
    for record in records:
        event = json.loads(record.value or b"")
        if record.topic == EPISODES.name:
            episodes[event["episode_id"]] = event
        else:
            episode = episodes[event["episode_id"]]
            label = {name: episode[name] for name in ("episode_id", "policy", "messages", "answer")} | {"verdict": 1.0, "votes": [event]}
            sent.append(json.dumps(label).encode())
    assert len(sent) == len(records) / 2


def timed(work: Callable[[], None]) -> float:
    """Seconds of processor time."""
    before = time.process_time()
    work()
    return time.process_time() - before


if __name__ == "__main__":
    main()
