"""How long people wait for an answer of 40 tokens while the learner steps, against how long they wait alone; and when the first adapter is served.

A whole ring is started as `tidemill up` starts it, on this machine. It is given 16 labels on answers to 16 questions, and asked again and again
until an adapter is served and ``--after`` further seconds have gone by. `python -m benchmarks.people_first --out FILE [--set section.key=value]`.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from infra.local.local_ring import Ring
from infra.local.up import step_sizing
from infra.operate.log_watch import LogWatch
from infra.settings.config import load

TOKENS = 40
LABELS, DOWN = 16, 5
FIRST_ADAPTER_S = 900.0
TOPICS = ("bread", "rain", "rivers", "chess", "tea", "maps", "bees", "ships", "glass", "snow", "trains", "salt", "wool", "clocks", "owls", "soap")


@dataclass(frozen=True)
class TimedAnswer:
    """One answer of ``TOKENS`` tokens."""

    at_s: float
    """When it was asked for, since the labels were given; negative before."""
    seconds: float
    learner_cpu_s: float
    """Processor seconds that the learner took meanwhile."""
    episode: str


def main() -> None:
    """Measure, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--alone", type=int, default=8, help="answers measured before there is anything to learn")
    parser.add_argument("--after", type=float, default=30.0, help="seconds to go on after the first adapter is served")
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two answers")
    parser.add_argument("--at-most", type=float, default=FIRST_ADAPTER_S, help="seconds from the labels until the adapter is given up")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="people-first-") as folder:
        found = measure(asked, Path(folder))
    asked.out.write_text(json.dumps(found, indent=1))
    print(json.dumps({key: value for key, value in found.items() if key != "answers"}, indent=1))


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, object]:
    """One ring, from its start to a while after its first adapter."""
    settings = load("laptop", (f"run_folder={folder / 'run'}", "actor.port=0", *asked.overrides))
    began_s = time.monotonic()
    with Ring(settings, print, keeps_going=True, sizing=step_sizing(settings)) as ring:
        ring.await_actor(600.0)
        ready_s = time.monotonic() - began_s
        watch = LogWatch(ring.settings.kafka, None)
        watch.start()
        with httpx.Client(base_url=ring.base_url, timeout=600) as http:
            time.sleep(20.0)  # the learner and the updater come up after the actor
            labels_s = time.monotonic()
            alone = [timed(http, TOPICS[n % len(TOPICS)], labels_s) for n in range(asked.alone + 1)][1:]
            given = [timed(http, topic, labels_s) for topic in TOPICS]
            for n, answer in enumerate(given):
                thumb = {"episode_id": answer.episode, "kind": "thumb", "thumb": "down" if n < DOWN else "up"}
                http.post("/feedback", json=thumb).raise_for_status()
            labels_s, served_s, beside = time.monotonic(), None, list[TimedAnswer]()
            while time.monotonic() - labels_s < (asked.at_most if served_s is None else served_s + asked.after):
                beside.append(timed(http, TOPICS[len(beside) % len(TOPICS)], labels_s))
                if served_s is None and any(told.passed for told in watch.facts.attestations):
                    served_s = time.monotonic() - labels_s
                ring.check()
                time.sleep(asked.pause)
        watch.stop()
        adapters = [(one.created_at - watch.facts.reward_models[0].created_at).total_seconds() for one in watch.facts.adapters]
        logs = {part: (folder / "run" / "logs" / f"{part}.log").read_text()[-20_000:] for part in ("learner", "actor")}
    stepping = [one for one in beside if one.learner_cpu_s > 0.02 * one.seconds] or beside
    return {
        "cores": len(os.sched_getaffinity(0)),
        "settings": asked.overrides,
        "actor_ready_s": round(ready_s, 1),
        "alone_s": spread(alone),
        "while_learning_s": spread(stepping),
        "times_as_long": round(statistics.median(a.seconds for a in stepping) / statistics.median(a.seconds for a in alone), 2),
        "first_adapter_served_s": served_s and round(served_s, 1),
        "adapters_published_s_after_first_reward_model": [round(one, 1) for one in adapters],
        "answers": [vars(one) for one in (*alone, *beside)],
        "logs": logs,
    }


def timed(http: httpx.Client, topic: str, zero_s: float) -> TimedAnswer:
    """Ask for exactly ``TOKENS`` tokens."""
    busy_s, start_s = learner_cpu_s(), time.monotonic()
    body = {"model": "default", "messages": [{"role": "user", "content": f"Tell me about {topic}."}], "max_tokens": TOKENS, "ignore_eos": True}
    answer = http.post("/chat/completions", json=body)
    answer.raise_for_status()
    return TimedAnswer(start_s - zero_s, time.monotonic() - start_s, learner_cpu_s() - busy_s, answer.headers["x-tidemill-episode"])


def learner_cpu_s() -> float:
    """Processor seconds of the learner that this process started, with all its children, so far."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::Learner"):
                total += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


def spread(answers: list[TimedAnswer]) -> dict[str, float]:
    """Median and extremes of the seconds, and how many answers there were."""
    seconds = sorted(one.seconds for one in answers)
    worst = seconds[min(len(seconds) - 1, int(0.9 * len(seconds)))]
    return {"median": round(statistics.median(seconds), 2), "p90": round(worst, 2), "most": round(seconds[-1], 2), "answers": len(seconds)}


if __name__ == "__main__":
    main()
