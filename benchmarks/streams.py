"""How fast the streams are, beside the limits in the same run: ``make bench-streams``.

Publish is set beside kafka-python sending ready bytes with the same options; join and label beside a plain Faust agent with Records and
a table on the same records (benchmarks/faust_join.py); the lake beside pyarrow writing the same rows and columns. Absolute figures are of the machine
they were taken on; the ratios are what is promised.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kafka
import pyarrow
import pyarrow.parquet

from infra.local.embedded_broker import Broker, BrokerSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import Episode, Event, Feedback, FeedbackKind, Message
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import EPISODES, FEEDBACK, LABELS, Topic
from streams.join import join_loop as joiner
from streams.join.join_settings import JoinSettings
from streams.kafka import Consumer, KafkaSettings, Producer, Record, create_topics, end_offsets
from streams.kafka.producer import BATCH_BYTES
from streams.lake.parquet_lake import Lake

GOALS = {"publish": 0.9, "join": 6.0, "lake": 0.7, "replay_k_per_minute": 500.0}
TURNS = 8


@dataclass
class Figure:
    """One measurement: how many, how long, and the processor time of this process."""

    name: str
    events: int
    seconds: float
    cpu_us_per_event: float

    @property
    def per_second(self) -> float:
        return self.events / self.seconds


def main() -> None:
    """Measure, print the table, write JSON, exit 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="episodes, and as many feedback events")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/streams.json"))
    options = parser.parse_args()
    episodes, feedback = history(options.events)
    with tempfile.TemporaryDirectory() as folder, Broker(BrokerSettings(heap_mib=512), Path(folder) / "broker") as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        create_topics(settings)
        figures = [*publishing(settings, episodes, feedback), *joining(settings, Path(folder), options.events)]
        figures += lake(consumed(settings, figures, options.events), Path(folder))
    by_name = {figure.name: figure for figure in figures}
    ratios = {
        "publish": by_name["publish"].per_second / by_name["raw kafka-python"].per_second,
        "join": by_name["join and label"].per_second / by_name["plain Faust agent"].per_second,
        "lake": by_name["lake write"].per_second / by_name["raw pyarrow"].per_second,
        "replay_k_per_minute": by_name["replay"].per_second * 60 / 1000,
    }
    for figure in figures:
        print(f"{figure.name:<22}{figure.per_second:>10,.0f} events/s {figure.cpu_us_per_event:>8.1f} µs of CPU each")
    for name, ratio in ratios.items():
        print(f"{name:<22}{ratio:>10.2f}  goal {GOALS[name]:g}  {'reached' if ratio >= GOALS[name] else 'MISSED'}")
    told = {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()},
        "figures": [asdict(figure) | {"per_second": figure.per_second} for figure in figures],
        "ratios": ratios,
        "goals": GOALS,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    if any(ratios[name] < goal for name, goal in GOALS.items()):
        sys.exit(1)


def history(count: int) -> tuple[list[Episode], list[Feedback]]:
    """Episodes of about 2 kB with 60 output tokens, and a thumb on each."""
    chance, now = random.Random(0), datetime.now(UTC)
    episodes = [
        Episode(
            episode_id=f"ep-{number}-{chance.getrandbits(64):x}",
            user_id=f"user-{number % 500}",
            adapter="default@7",
            messages=(
                Message(role="system", content="You are a helpful assistant that answers briefly."),
                Message(role="user", content=f"Tell me about number {number}, please, and why people like it. " * 3),
            ),
            answer="It is a number that people like. " * 8,
            prompt_ids=tuple(range(40)),
            output_ids=tuple(chance.randrange(49_152) for _ in range(60)),
            output_logprobs=tuple(-chance.random() for _ in range(60)),
            sampling={"temperature": 0.7, "max_tokens": 60},
            started_at=now,
            ended_at=now,
        )
        for number in range(count)
    ]
    feedback = [
        Feedback(feedback_id=f"fb-{n}", episode_id=e.episode_id, user_id=f"user-{n % 500}", kind=FeedbackKind.THUMB, thumb="up", at=now)
        for n, e in enumerate(episodes)
    ]
    return episodes, feedback


@contextmanager
def timed(figures: list[Figure], name: str, events: int) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    figures.append(Figure(name, events, time.perf_counter() - wall, (time.process_time() - cpu) / events * 1e6))


def publishing(settings: KafkaSettings, episodes: list[Episode], feedback: list[Feedback]) -> list[Figure]:
    """Our producer with events, and kafka-python's with bytes made beforehand, both acknowledged by the broker. Turns are taken,
    each side first in half of them, since who comes second meets a broker that is still busy with the first; the medians count."""
    found: list[Figure] = []
    everything: list[tuple[Topic[Any], Event]] = [pair for e, f in zip(episodes, feedback, strict=True) for pair in ((EPISODES, e), (FEEDBACK, f))]
    ready = [(topic.name.replace("tidemill", "raw"), event.key.encode(), event.encode()) for topic, event in everything]
    create(settings, *{topic for topic, _, _ in ready})
    raw = kafka.KafkaProducer(**settings.client_options(), acks="all", enable_idempotence=True, linger_ms=5, batch_size=BATCH_BYTES)
    ours = Producer(settings, Metrics(), "bench")
    size = len(everything) // TURNS

    def of_raw(part: slice) -> None:
        with timed(found, "raw kafka-python", size):
            for topic, key, value in ready[part]:
                raw.send(topic, key=key, value=value)
            raw.flush()

    def of_ours(part: slice) -> None:
        with timed(found, "publish", size):
            for kind, event in everything[part]:
                ours.send(kind, event)
            ours.flush()

    for turn in range(TURNS):
        for side in (of_raw, of_ours)[:: 1 if turn % 2 == 0 else -1]:
            side(slice(turn * size, (turn + 1) * size))
    raw.close()
    ours.close()
    by_name = {name: sorted((f for f in found if f.name == name), key=lambda f: f.per_second) for name in ("raw kafka-python", "publish")}
    return [figures[TURNS // 2] for figures in by_name.values()]


def create(settings: KafkaSettings, *names: str) -> None:
    """Topics that are only here to be set beside."""
    admin = kafka.KafkaAdminClient(**settings.client_options())
    admin.create_topics({name: {"num_partitions": settings.partitions, "replication_factor": 1} for name in names}, wait_for_metadata=True)
    admin.close()


def joining(settings: KafkaSettings, folder: Path, count: int) -> list[Figure]:
    """From the first record to the last acknowledged label, the start left out; ours in this process, Faust in its own."""
    context = PartContext(settings, ArtifactStore(str(folder)), "default", folder, folder / "state")
    thread = threading.Thread(target=joiner.run, args=(JoinSettings(), context))
    figures: list[Figure] = []
    thread.start()
    wait_until(lambda: context.metrics.value("tidemill_consumed_total", topic=EPISODES.name, part="join") > 0)
    with timed(figures, "join and label", 2 * count):
        wait_until(lambda: context.metrics.value("tidemill_feedback_joined_total", kind="thumb") >= count)
    context.stopping.set()
    thread.join()
    assert sum(end_offsets(settings, LABELS, Metrics()).values()) >= count
    create(settings, "bench.faust-labels")
    command = [sys.executable, str(Path(__file__).with_name("faust_join.py")), settings.servers[0], str(count), str(folder / "faust")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    if done.returncode:
        raise SystemExit(f"the Faust agent failed:\n{done.stdout[-2000:]}")
    told = json.loads((folder / "faust" / "result.json").read_text())
    return [*figures, Figure("plain Faust agent", told["events"], told["seconds"], told["cpu_seconds"] / told["events"] * 1e6)]


def consumed(settings: KafkaSettings, figures: list[Figure], count: int) -> list[Record]:
    """All episodes on the log."""
    consumer, records = Consumer(settings, [EPISODES], "bench", Metrics()), list[Record]()
    with timed(figures, "consume", count):
        while consumer.measure_lag():
            records += consumer.poll(1.0, 5000)
    consumer.close()
    return records


def lake(records: Sequence[Record], folder: Path) -> list[Figure]:
    """Writing records as Parquet, beside pyarrow writing the same rows with the fields of their events; and replay of the episodes from it."""
    count, figures = len(records), list[Figure]()
    by_partition = [[r for r in records if r.partition == partition] for partition in sorted({r.partition for r in records})]
    store = Lake(str(folder / "lake"))
    with timed(figures, "raw pyarrow", count):
        for number, rows in enumerate(by_partition):
            taken = [{name: getattr(row, name) for name in ("offset", "timestamp_ms", "key", "value")} for row in rows]
            told = [
                EPISODES.decode(row.value).model_dump(exclude={"sampling", "redacted", "chat_template_kwargs"}) for row in rows
            ]  # Parquet has no empty struct
            table = pyarrow.Table.from_pylist([record | event for record, event in zip(taken, told, strict=True)])
            pyarrow.parquet.write_table(table, folder / f"raw-{number}.parquet", compression="zstd")
    with timed(figures, "lake write", count):
        for rows in by_partition:
            store.write(EPISODES, rows)
    with timed(figures, "replay", count):
        assert sum(1 for _ in store.replay(EPISODES)) == count
    return figures


def wait_until(condition: Callable[[], bool], timeout_s: float = 900) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise SystemExit("the join did not end")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
