"""A ring as `tidemill up` runs it, with the tiny base: its Kafka is killed under people who talk, and it tells how it learns."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from infra.local.local_ring import Ring
from infra.operate.ring_status import ledger_now, status_now
from infra.settings.config import load
from streams.core.errors import ConfigError
from tests.support.running import wait_for

pytestmark = pytest.mark.timeout(540)
LABELS = 6


@dataclass
class Turning:
    """A ring whose actor answers, what it has said, and the episodes that people had answers in."""

    ring: Ring
    said: list[str]
    http: httpx.Client
    episodes: list[str]

    def ask(self, about: str, thumb: str = "up") -> None:
        """An answer, and a thumb on it that is taken."""
        body: dict[str, Any] = {
            "model": "default",
            "user": "dev",
            "messages": [{"role": "user", "content": f"Tell me about {about}."}],
            "max_tokens": 4,
        }
        answer = self.http.post("/chat/completions", json=body)
        answer.raise_for_status()
        self.episodes.append(answer.headers["x-tidemill-episode"])
        self.http.post("/feedback", json={"episode_id": self.episodes[-1], "user_id": "dev", "kind": "thumb", "thumb": thumb}).raise_for_status()


@pytest.fixture(scope="module")
def turning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Turning]:
    said: list[str] = []
    settings = load("tiny", (f"run_folder={tmp_path_factory.mktemp('up')}", f"reward.min_labels={LABELS}", "reward.min_each_verdict=2",
                             f"learner.prompts_needed={LABELS}", "learner.background=true"), {})  # fmt: skip
    with Ring(settings, said.append, keeps_going=True) as ring:
        ring.await_actor(420)
        with httpx.Client(base_url=ring.base_url, timeout=60) as http:
            yield Turning(ring, said, http, [])


def test_health_names_the_run_and_another_ring_on_its_port_is_refused(turning: Turning, tmp_path: Path) -> None:
    ring = turning.ring
    with urllib.request.urlopen(f"{ring.base_url.removesuffix('/v1')}/healthz", timeout=5) as answer:
        assert json.loads(answer.read())["run_id"] == ring.settings.run_id
    with pytest.raises(ConfigError, match=f"actor.port = 127.0.0.1:{ring.settings.actor.port} is in use"):
        Ring(ring.settings.model_copy(update={"run_folder": tmp_path / "other"}), turning.said.append).start()


def test_answers_go_on_while_kafka_is_dead_and_the_books_balance_once_it_is_back(turning: Turning) -> None:
    ring, broker = turning.ring, turning.ring._broker
    turning.ask("rain")
    assert broker is not None
    assert broker.pid is not None
    servers = broker.bootstrap_servers
    os.kill(broker.pid, signal.SIGKILL)
    wait_for(lambda: not broker.running(), 10)
    for about in ("tea", "owls", "salt"):  # while nobody starts Kafka again
        turning.ask(about)
    assert not broker.running()

    def kafka_is_back() -> bool:
        ring.check()
        return broker.running()

    def all_is_accounted_for() -> bool:
        ring.check()
        rows = {row.topic.split(".")[1]: row for row in ledger_now(ring.settings).rows}
        return all(rows[topic].joined == len(turning.episodes) and not rows[topic].missing for topic in ("episodes", "feedback"))

    wait_for(kafka_is_back, 60)
    broker.await_ready()
    assert broker.bootstrap_servers == servers
    assert sum("Kafka died" in sentence for sentence in turning.said) == 1
    wait_for(all_is_accounted_for, 120)
    assert ring.actor_ready()


def test_status_says_what_is_needed_until_the_learner_steps_in_the_background(turning: Turning) -> None:
    ring = turning.ring
    assert f"{len(turning.episodes)} of {LABELS} labels" in status_now(ring.settings).learning
    assert "0 of 2 thumbs down" in status_now(ring.settings).learning
    for number, about in enumerate(("bees", "ships", "glass", "wool", "snow", "maps")[: LABELS - len(turning.episodes)]):
        turning.ask(about, "down" if number < 2 else "up")

    def a_step_was_told() -> bool:
        ring.check()
        return status_now(ring.settings).learning.startswith(("step ", "waits before step 2"))

    wait_for(a_step_was_told, 240)
    learners = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::Learner")]
    assert {(os.sched_getscheduler(one.pid), one.nice()) for one in learners} == {(os.SCHED_IDLE, 19)}
