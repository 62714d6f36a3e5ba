"""Hundreds of thousands of events through outbox, Kafka, join and lake, and whether memory and cost per event stay flat: ``make soak``.

One process publishes through an outbox, as an actor does; another is ``tidemill run streams``. Each tenth of the events is a row: how fast, what
it cost the streams, and how much memory each process holds. Exits 1 when memory grew or an event is missing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.streams import history
from infra.local.embedded_broker import Broker, BrokerSettings, die_with_parent
from infra.settings.config import load, to_toml
from streams.core.metrics import Metrics
from streams.core.topics import EPISODES, FEEDBACK
from streams.join.join_session import GROUP
from streams.join.ledger import read_ledger
from streams.kafka import KafkaSettings, Producer, committed_offsets, create_topics
from streams.outbox.outbox import Outbox
from streams.outbox.outbox_settings import OutboxSettings

TENTHS = 10
SETTLED = 3
"""From this tenth on memory must stay: caches are full by then."""
MOST_GROWTH = 1.15
AHEAD = 20_000
"""So many events may wait in the outbox, and as many for the join."""


@dataclass
class Row:
    """The streams and the outbox when so many events had been joined, and the cost of those since the row before."""

    events: int
    seconds: float
    per_second: float
    streams_cpu_us_per_event: float
    streams_mib: float
    outbox_mib: float
    outbox_cpu_us_per_event: float


def main() -> None:
    """Run, print a row for each tenth, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300_000, help="half of them episodes, half of them thumbs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.json"))
    parser.add_argument("--publish", nargs=2, metavar=("KAFKA", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        publish(KafkaSettings(bootstrap_servers=options.publish[0]), Path(options.publish[1]), options.events)
        return
    with tempfile.TemporaryDirectory() as name, Broker(BrokerSettings(heap_mib=512), Path(name) / "broker") as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        create_topics(settings)
        rows = soak(settings, Path(name), options.events)
        began, before = time.monotonic(), psutil.Process().memory_info().rss
        books = read_ledger(settings)
        ledger = {"text": str(books).splitlines(), "seconds": time.monotonic() - began,
                  "mib": (psutil.Process().memory_info().rss - before) / 2**20}  # fmt: skip
    late = rows[SETTLED - 1 :]
    growth = {"streams": max(r.streams_mib for r in late) / late[0].streams_mib, "outbox": max(r.outbox_mib for r in late) / late[0].outbox_mib,
              "streams_cpu_per_event": late[-1].streams_cpu_us_per_event / late[0].streams_cpu_us_per_event}  # fmt: skip
    told = {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()},
        "rows": [asdict(row) for row in rows],
        "growth_after_the_third_tenth": growth,
        "ledger": ledger,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps({"growth": growth, "ledger": ledger}, indent=1))
    if not books.balanced or books.rows[1].joined != options.events // 2 or max(growth["streams"], growth["outbox"]) > MOST_GROWTH:
        sys.exit(1)


def soak(settings: KafkaSettings, folder: Path, events: int) -> list[Row]:
    """Both processes from start to end."""
    config = folder / "ring.toml"
    config.write_text(to_toml(load(None, (f"run_folder={folder}", f"kafka.bootstrap_servers={settings.bootstrap_servers}"), {})))
    streams = child("-P", "-m", "infra.cli", "run", "streams", "--config", str(config))
    outbox = child("-m", "benchmarks.soak", "--events", str(events), "--publish", str(settings.bootstrap_servers), str(folder))
    rows: list[Row] = []
    began, mark, joined, cpu, outbox_cpu = time.monotonic(), 0, 0, 0.0, 0.0
    since, outbox_mib, outbox_cpu_now = began, 0.0, 0.0
    try:
        while len(rows) < TENTHS:
            time.sleep(0.5)
            joined = joined_events(settings)
            if streams.status() == psutil.STATUS_ZOMBIE:
                raise SystemExit("the streams died")
            if outbox.is_running() and outbox.status() != psutil.STATUS_ZOMBIE:
                outbox_mib, outbox_cpu_now = outbox.memory_info().rss / 2**20, sum(outbox.cpu_times()[:2])
            if joined < min(events, (len(rows) + 1) * events // TENTHS):
                continue
            now, spent = time.monotonic(), sum(streams.cpu_times()[:2])
            count = joined - mark
            row = Row(joined, now - began, count / (now - since), (spent - cpu) / count * 1e6, streams.memory_info().rss / 2**20, outbox_mib,
                      (outbox_cpu_now - outbox_cpu) / count * 1e6)  # fmt: skip
            print(f"{row.events:>9} events  {row.per_second:>6.0f}/s  streams {row.streams_cpu_us_per_event:.0f} us, {row.streams_mib:.0f} MiB"
                  f"  outbox {row.outbox_mib:.0f} MiB", flush=True)  # fmt: skip
            rows.append(row)
            mark, since, cpu, outbox_cpu = joined, now, spent, outbox_cpu_now
    finally:
        for process in (streams, outbox):
            process.terminate()
        psutil.wait_procs((streams, outbox), timeout=60)
    return rows


def joined_events(settings: KafkaSettings) -> int:
    """Events that the join has done with."""
    return sum(offset for (topic, _), offset in committed_offsets(settings, GROUP).items() if topic in (EPISODES.name, FEEDBACK.name))


def child(*arguments: str) -> psutil.Popen:
    return psutil.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)


def publish(settings: KafkaSettings, folder: Path, events: int) -> None:
    """Through an outbox, no faster than it takes them, and not far ahead of the join: one that catches up reads topic after topic, and the labels,
    which are most of its work, would all fall on the last events."""
    metrics = Metrics()
    outbox = Outbox(folder / "outbox.sqlite", lambda: Producer(settings, metrics, "tidemill-actor"), metrics, "actor", OutboxSettings())
    episodes, feedback = history(1000)
    for number in range(events // 2):
        episode = episodes[number % 1000].model_copy(update={"episode_id": f"ep-{number}"})
        thumb = feedback[number % 1000].model_copy(update={"episode_id": episode.episode_id, "feedback_id": f"fb-{number}"})
        while outbox.depth > AHEAD or (number % 1000 == 0 and 2 * number - joined_events(settings) > AHEAD):
            time.sleep(0.05)
        outbox.put(EPISODES, episode)
        outbox.put(FEEDBACK, thumb)
    outbox.wait_until_empty(3600)
    outbox.close()


if __name__ == "__main__":
    main()
