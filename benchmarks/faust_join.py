"""The join as a plain Faust agent would do it: Records, a table, one event at a time. Something to be set beside (benchmarks/streams.py)."""

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import faust

BROKER, COUNT, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3]
app = faust.App(
    "bench-faust",
    broker=f"kafka://{BROKER}",
    datadir=FOLDER,
    web_enabled=False,
    topic_partitions=4,
    topic_replication_factor=1,
    consumer_auto_offset_reset="earliest",
    broker_session_timeout=10,
    broker_heartbeat_interval=3,
)


class Episode(faust.Record, serializer="json"):
    episode_id: str
    policy: str
    messages: list[Any]
    answer: str
    outcome: str
    ended_at: str


class Feedback(faust.Record, serializer="json"):
    feedback_id: str
    episode_id: str
    user_id: str
    kind: str
    at: str
    thumb: str | None = None


class Label(faust.Record, serializer="json"):
    episode_id: str
    policy: str
    messages: list[Any]
    answer: str
    verdict: float | None
    votes: list[Any]


episodes = app.topic("tidemill.episodes.v1", value_type=Episode)
feedback = app.topic("tidemill.feedback.v1", value_type=Feedback)
labels = app.topic("bench.faust-labels", value_type=Label, partitions=4)
standing = app.Table("standing", default=dict, partitions=4)
done = {"events": 0, "labels": 0, "started": 0.0, "cpu": 0.0}


async def publish(state: dict[str, Any]) -> None:
    votes = list(state["votes"].values())
    verdict = sum(vote["value"] for vote in votes) / len(votes)
    episode = state["episode"]
    await labels.send(key=episode["episode_id"], value=Label(verdict=verdict, votes=votes, **episode))
    done["labels"] += 1


def count() -> None:
    if not done["events"]:
        done["started"], done["cpu"] = time.perf_counter(), time.process_time()
    done["events"] += 1


@app.agent(episodes)
async def on_episode(stream: Any) -> None:
    async for episode in stream:
        count()
        state = standing[episode.episode_id]
        state.setdefault("votes", {})
        state["episode"] = {"episode_id": episode.episode_id, "policy": episode.policy, "messages": episode.messages, "answer": episode.answer}
        standing[episode.episode_id] = state
        if state["votes"]:
            await publish(state)
        await finish()


@app.agent(feedback)
async def on_feedback(stream: Any) -> None:
    async for given in stream:
        count()
        state = standing[given.episode_id]
        state.setdefault("votes", {})[given.user_id] = {
            "feedback_id": given.feedback_id,
            "value": 1.0 if given.thumb == "up" else 0.0,
            "at": given.at,
        }
        standing[given.episode_id] = state
        if "episode" in state:
            await publish(state)
        await finish()


async def finish() -> None:
    if done["events"] < 2 * COUNT:
        return
    await app.producer.flush()
    seconds, cpu = time.perf_counter() - done["started"], time.process_time() - done["cpu"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    told = {"events": done["events"], "labels": done["labels"], "seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak}
    Path(FOLDER, "result.json").write_text(json.dumps(told))
    os._exit(0)


if __name__ == "__main__":
    threading.Timer(100 + COUNT / 200, os._exit, (3,)).start()  # its clean-up can outlast whoever started it
    sys.argv[1:] = ["worker", "-l", "error", "--without-web"]
    app.main()
