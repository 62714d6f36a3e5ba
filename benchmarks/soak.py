"""Hundreds of thousands of events through outbox, Kafka, join and lake, and whether memory and cost per event stay flat: ``make soak``.

One process publishes through an outbox, as an actor does; another is ``tidemill run streams``. Each tenth of the events is a row: how fast, what
it cost the streams, and how much memory each process holds. One record in a hundred is poison of every sort (``benchmarks.poison``). Exits 1 when
memory grew, an event is missing, or a poisoned record is not accounted for.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.poison import PoisonWriter, poison
from benchmarks.streams import history
from infra.local.embedded_broker import Broker, BrokerSettings, die_with_parent
from infra.settings.config import load, to_toml
from streams.core.metrics import Metrics
from streams.core.topics import DEAD_LETTERS, EPISODES, FEEDBACK
from streams.join.join_session import GROUP
from streams.join.ledger import read_ledger
from streams.kafka import KafkaSettings, Producer, committed_offsets, create_topics, read_to_end
from streams.outbox.outbox import Outbox
from streams.outbox.outbox_settings import OutboxSettings

TENTHS = 10
SETTLED = 3
"""From this tenth on memory must stay: caches are full by then."""
MOST_GROWTH = 1.15
POISONED = "poisoned.json"
SORTS = sum(1 for _ in poison(*(made[0] for made in history(1))))
"""Poisoned records in one round."""
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
    parser.add_argument("--poison", type=float, default=0.01, help="share of poisoned records beside the events")
    parser.add_argument("--publish", nargs=2, metavar=("KAFKA", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        publish(KafkaSettings(bootstrap_servers=options.publish[0]), Path(options.publish[1]), options.events, options.poison)
        return
    with tempfile.TemporaryDirectory() as name, Broker(BrokerSettings(heap_mib=512), Path(name) / "broker") as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        create_topics(settings)
        rows = soak(settings, Path(name), options.events, options.poison)
        poisoned = poison_account(settings, json.loads((Path(name) / POISONED).read_text()))
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
        "poison": poisoned,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps({"growth": growth, "ledger": ledger, "poison": poisoned}, indent=1))
    complete = books.balanced and books.rows[1].joined >= options.events // 2 and not poisoned["wrong"]
    if not complete or max(growth["streams"], growth["outbox"]) > MOST_GROWTH:
        sys.exit(1)


def poison_account(settings: KafkaSettings, sent: list[dict[str, Any]]) -> dict[str, Any]:
    """How many poisoned records there were by sort, dead letters by reason, and which records went the wrong way: unusable and no dead letter, or
    usable and a dead letter."""
    letters: dict[tuple[str, int, int], str] = {}
    for record in read_to_end(settings, DEAD_LETTERS, "soak", Metrics()):
        letter = json.loads(record.value or b"{}")
        letters[letter["source_topic"], letter["source_partition"], letter["source_offset"]] = letter["reason"]
    reasons = [(one, letters.get(tuple(one["place"]))) for one in sent]
    wrong = {f"{one['sort']}: {reason or 'no dead letter'}" for one, reason in reasons if (reason is None) != one["usable"]}
    strangers = len(set(letters) - {tuple(one["place"]) for one in sent})
    return {"sent": Counter(one["sort"] for one in sent), "dead_letters": Counter(letters.values()), "wrong": sorted(wrong),
            "dead_letters_of_good_events": strangers}  # fmt: skip


def soak(settings: KafkaSettings, folder: Path, events: int, share: float) -> list[Row]:
    """Both processes from start to end."""
    config = folder / "ring.toml"
    config.write_text(to_toml(load(None, (f"run_folder={folder}", f"kafka.bootstrap_servers={settings.bootstrap_servers}"), {})))
    streams = child("-P", "-m", "infra.cli", "run", "streams", "--config", str(config))
    sizes = ("--events", str(events), "--poison", str(share))
    outbox = child("-m", "benchmarks.soak", *sizes, "--publish", str(settings.bootstrap_servers), str(folder))
    rows: list[Row] = []
    began, mark, joined, cpu, outbox_cpu = time.monotonic(), 0, 0, 0.0, 0.0
    since, outbox_mib, outbox_cpu_now = began, 0.0, 0.0
    total = events + poisoned_records(events, share)
    try:
        while joined < total:
            time.sleep(0.5)
            joined = joined_events(settings)
            if streams.status() == psutil.STATUS_ZOMBIE:
                raise SystemExit("the streams died")
            if outbox.is_running() and outbox.status() != psutil.STATUS_ZOMBIE:
                outbox_mib, outbox_cpu_now = outbox.memory_info().rss / 2**20, sum(outbox.cpu_times()[:2])
            if joined < min(total, mark + total // TENTHS):
                continue
            now, spent = time.monotonic(), sum(streams.cpu_times()[:2])
            count = joined - mark
            row = Row(joined, now - began, count / (now - since), (spent - cpu) / count * 1e6, streams.memory_info().rss / 2**20, outbox_mib,
                      (outbox_cpu_now - outbox_cpu) / count * 1e6)  # fmt: skip
            print(f"{row.events:>9} events  {row.per_second:>6.0f}/s  streams {row.streams_cpu_us_per_event:.0f} us, {row.streams_mib:.0f} MiB"
                  f"  outbox {row.outbox_mib:.0f} MiB", flush=True)  # fmt: skip
            rows.append(row)
            mark, since, cpu, outbox_cpu = joined, now, spent, outbox_cpu_now
        outbox.wait(60)  # it still writes down where the poison lies
    finally:
        for process in (streams, outbox):
            with suppress(psutil.NoSuchProcess):  # the publisher has usually ended
                process.terminate()
        psutil.wait_procs((streams, outbox), timeout=60)
    return rows


def joined_events(settings: KafkaSettings) -> int:
    """Events that the join has done with."""
    return sum(offset for (topic, _), offset in committed_offsets(settings, GROUP).items() if topic in (EPISODES.name, FEEDBACK.name))


def child(*arguments: str) -> psutil.Popen:
    return psutil.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)


def poisoned_records(events: int, share: float) -> int:
    """How many records are poison: whole rounds of every sort."""
    return poison_rounds(events, share) * SORTS


def poison_rounds(events: int, share: float) -> int:
    return math.ceil(events * share / SORTS)


def publish(settings: KafkaSettings, folder: Path, events: int, share: float) -> None:
    """Through an outbox, no faster than it takes them, and not far ahead of the join: one that catches up reads topic after topic, and the labels,
    which are most of its work, would all fall on the last events. Rounds of poison go past the outbox, evenly spread."""
    metrics, writer = Metrics(), PoisonWriter(settings)
    outbox = Outbox(folder / "outbox.sqlite", lambda: Producer(settings, metrics, "tidemill-actor"), metrics, "actor", OutboxSettings())
    episodes, feedback = history(1000)
    rounds = poison_rounds(events, share)
    for number in range(events // 2):
        episode = episodes[number % 1000].model_copy(update={"episode_id": f"ep-{number}"})
        thumb = feedback[number % 1000].model_copy(update={"episode_id": episode.episode_id, "feedback_id": f"fb-{number}"})
        while outbox.depth > AHEAD or (number % 1000 == 0 and 2 * number - joined_events(settings) > AHEAD):
            time.sleep(0.05)
        outbox.put(EPISODES, episode)
        outbox.put(FEEDBACK, thumb)
        if number * rounds // (events // 2) != (number + 1) * rounds // (events // 2):
            for record in poison(episode, thumb):
                writer.send(record)
    outbox.wait_until_empty(3600)
    outbox.close()
    (folder / POISONED).write_text(json.dumps(writer.close()))


if __name__ == "__main__":
    main()
