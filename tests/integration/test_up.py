"""A ring as `tidemill up` runs it, with the tiny base: its Kafka is killed under people who talk, and nothing of what they said is lost."""

import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.local_ring import Ring
from infra.operate.ring_status import ledger_now
from infra.settings.config import load
from streams.core.errors import ConfigError
from tests.support.running import wait_for

pytestmark = pytest.mark.timeout(540)


def ask(http: httpx.Client, about: str) -> str:
    """An answer; returns its episode's id, once a thumb on it is taken."""
    body: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": f"Tell me about {about}."}], "max_tokens": 4}
    answer = http.post("/chat/completions", json=body)
    answer.raise_for_status()
    episode = answer.headers["x-tidemill-episode"]
    http.post("/feedback", json={"episode_id": episode, "kind": "thumb", "thumb": "up"}).raise_for_status()
    return episode


def test_answers_go_on_while_kafka_is_dead_and_the_books_balance_once_it_is_back(tmp_path: Path) -> None:
    said: list[str] = []
    settings = load("tiny", (f"run_folder={tmp_path / 'run'}", "actor.cpu_threads=1"), {})
    with Ring(settings, said.append, keeps_going=True) as ring, httpx.Client(base_url=ring.base_url, timeout=60) as http:
        ring.await_actor(420)
        http.base_url = httpx.URL(ring.base_url)  # the port is known only now
        with urllib.request.urlopen(f"{ring.base_url.removesuffix('/v1')}/healthz", timeout=5) as answer:
            assert json.loads(answer.read())["run_id"] == ring.settings.run_id
        with pytest.raises(ConfigError, match=f"actor.port = 127.0.0.1:{ring.settings.actor.port} is in use"):
            Ring(ring.settings.model_copy(update={"run_folder": tmp_path / "other"}), said.append).start()
        episodes = [ask(http, "rain")]
        broker = ring._broker
        assert broker is not None
        assert broker.pid is not None
        servers = broker.bootstrap_servers
        os.kill(broker.pid, signal.SIGKILL)
        wait_for(lambda: not broker.running(), 10)
        episodes += [ask(http, about) for about in ("tea", "owls", "salt")]  # while nobody starts Kafka again
        assert not broker.running()

        def kafka_is_back() -> bool:
            ring.check()
            return broker.running()

        def all_is_accounted_for() -> bool:
            ring.check()
            rows = {row.topic.split(".")[1]: row for row in ledger_now(ring.settings).rows}
            return all(rows[topic].joined == len(episodes) and not rows[topic].missing for topic in ("episodes", "feedback"))

        wait_for(kafka_is_back, 60)
        broker.await_ready()
        assert broker.bootstrap_servers == servers
        assert sum("Kafka died" in sentence for sentence in said) == 1
        wait_for(all_is_accounted_for, 120)
        assert ring.actor_ready()
