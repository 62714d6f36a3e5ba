"""From a feedback event on the topic to the published version that counts it, on a real Kafka. `python -m benchmarks.reward_latency`.

An embedded broker, the streams and the updater as processes of their own. First every episode gets a thumb, so that its features are known; then
thumbs of ever new people come at a steady rate, one in five against the answer's kind. Each is timed from when it was given (its event
time, set when it is sent) to when the first version was made whose offsets lie beyond the label that holds it. The publishing rule is opened
wide, so that it is the pipeline that is timed and not the rule.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.local.embedded_broker import Broker, BrokerSettings
from streams.core.events import Episode, Feedback, FeedbackKind, Message, new_id
from streams.core.metrics import Metrics
from streams.core.topics import EPISODES, FEEDBACK, LABELS, REWARD_MODELS
from streams.kafka import KafkaSettings, Producer, create_topics, read_to_end

WORDS = ("tea", "water", "leaf", "you", "please", "warm", "cup", "garden", "green", "slow", "kettle", "friend")


def episode(number: int, now: datetime) -> Episode:
    """An answer of some words; every other one speaks to the reader."""
    rng = random.Random(number)
    said = " ".join(rng.choices(WORDS, k=30))
    answer = f"You would like this: {said}" if number % 2 else f"It is said that {said}"
    asked = (Message(role="user", content=f"Tell me about tea, number {number}"),)
    return Episode(episode_id=f"ep-{number}", messages=asked, answer=answer, started_at=now, ended_at=now)


def thumb(number: int, rng: random.Random) -> Feedback:
    """A new person's thumb, given now."""
    up = (number % 2 == 1) != (rng.random() < 0.2)
    return Feedback(
        feedback_id=new_id("fb"),
        episode_id=f"ep-{number}",
        user_id=new_id("u"),
        kind=FeedbackKind.THUMB,
        thumb="up" if up else "down",
        at=datetime.now(UTC),
    )


def part(role: str, config: Path, log: Path) -> subprocess.Popen[bytes]:
    """One part of the ring as a process."""
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-P", "-m", "infra.cli", "run", role, "--config", str(config)], stdout=out, stderr=out)


def versions(kafka: KafkaSettings) -> list[Any]:
    return [REWARD_MODELS.decode(r.value) for r in read_to_end(kafka, REWARD_MODELS, "bench", Metrics())]


def wait_for_labels(kafka: KafkaSettings, labels: int, within_s: float) -> None:
    until = time.monotonic() + within_s
    while not ((seen := versions(kafka)) and seen[-1].labels >= labels):
        if time.monotonic() > until:
            raise SystemExit(f"no version counts {labels} labels after {within_s} s")
        time.sleep(1.0)


def latencies(kafka: KafkaSettings, given: dict[str, datetime]) -> list[float]:
    """Seconds from feedback to the first version that counts it; feedback that no version counts is left out."""
    held: dict[str, tuple[int, int]] = {}
    for record in read_to_end(kafka, LABELS, "bench", Metrics()):
        for feedback_id in LABELS.decode(record.value).feedback_ids:
            held.setdefault(feedback_id, (record.partition, record.offset))
    made = versions(kafka)
    found = []
    for feedback_id, at in given.items():
        partition, offset = held[feedback_id]
        counted = next((v for v in made if v.offsets[LABELS.name].get(partition, 0) > offset), None)
        if counted is not None:
            found.append((counted.created_at - at).total_seconds())
    return sorted(found)


def measure(folder: Path, base: str, episodes: int, rate: float, seconds: float, settle_s: float) -> dict[str, Any]:
    rng, metrics = random.Random(0), Metrics()
    with Broker(BrokerSettings(), folder / "broker") as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        create_topics(kafka)
        config = folder / "config.toml"
        config.write_text(
            f'run_folder = "{folder}"\n[policy]\nbase = "{base}"\n[kafka]\nbootstrap_servers = "{broker.bootstrap_servers}"\n'
            "[reward]\npublish_tolerance_se = 10\ndrift_hold_labels = 0\n"
        )
        parts = [part(role, config, folder / f"{role}.log") for role in ("streams", "reward")]
        producer = Producer(kafka, metrics, "bench")
        try:
            for number in range(episodes):
                producer.send(EPISODES, episode(number, datetime.now(UTC)))
                producer.send(FEEDBACK, thumb(number, rng))
            producer.flush()
            wait_for_labels(kafka, episodes, settle_s)
            given: dict[str, datetime] = {}
            began = time.monotonic()
            while (elapsed := time.monotonic() - began) < seconds:
                for _ in range(int(elapsed * rate) - len(given)):
                    feedback = thumb(rng.randrange(episodes), rng)
                    producer.send(FEEDBACK, feedback)
                    given[feedback.feedback_id] = feedback.at
                time.sleep(0.01)
            producer.flush()
            time.sleep(15.0)
            took = latencies(kafka, given)
        finally:
            for process in parts:
                process.send_signal(signal.SIGTERM)
            for process in parts:
                process.wait(timeout=180)
            producer.close()
    return {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "load": os.getloadavg()},
        "episodes": episodes,
        "feedback_per_s": rate,
        "feedback": len(given),
        "counted": len(took),
        "p50_s": took[len(took) // 2],
        "p99_s": took[int(len(took) * 0.99)],
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--base", default="smollm2", help="smollm2 or tiny")
    arguments.add_argument("--episodes", type=int, default=600)
    arguments.add_argument("--rate", type=float, default=200.0, help="feedback a second")
    arguments.add_argument("--seconds", type=float, default=20.0)
    arguments.add_argument("--settle-s", type=float, default=400.0, help="how long the features of all episodes may take")
    arguments.add_argument("--out", type=Path, default=Path("benchmarks/results/reward_latency.json"))
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), given.base, given.episodes, given.rate, given.seconds, given.settle_s)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
