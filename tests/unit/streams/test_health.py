"""A part says whether it lives and whether it can work, and means it."""

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from streams.core.errors import ConfigError
from streams.core.health import Health, serve
from streams.core.metrics import Metrics


class Hands:
    """A clock that stands still until it is moved."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def ask(port: int, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture
def served() -> tuple[int, Health, Metrics, Hands]:
    hands, metrics = Hands(), Metrics()
    health = Health(hands)
    return serve(metrics, health), health, metrics, hands


def test_a_part_is_ready_when_its_loops_have_come_round_and_kafka_answers(served: tuple[int, Health, Metrics, Hands]) -> None:
    port, health, _, _ = served
    health.mark_missing("kafka", "join")
    assert ask(port, "/readyz") == (503, json.dumps({"status": "waiting", "missing": ["kafka", "join"]}).encode())
    assert ask(port, "/healthz")[0] == 200, "waiting is no reason to be started anew"
    health.heartbeat("join", 60)
    health.mark_present("kafka")
    assert ask(port, "/readyz") == (200, json.dumps({"status": "ready", "missing": []}).encode())


def test_a_loop_that_hangs_makes_the_part_neither_alive_nor_ready_until_it_turns_again(served: tuple[int, Health, Metrics, Hands]) -> None:
    port, health, _, hands = served
    health.heartbeat("join", 60)
    hands.now_s = 60
    assert ask(port, "/healthz")[0] == 200
    hands.now_s = 61
    assert ask(port, "/healthz") == (503, json.dumps({"status": "hanging", "hanging": ["join"]}).encode())
    assert ask(port, "/readyz")[0] == 503
    health.heartbeat("join", 60)
    assert (ask(port, "/healthz")[0], ask(port, "/readyz")[0]) == (200, 200)


def test_it_listens_where_it_is_told_and_a_taken_address_is_an_error_that_names_the_settings() -> None:
    port = serve(Metrics(), Health(), host="127.0.0.2")
    with urllib.request.urlopen(f"http://127.0.0.2:{port}/healthz", timeout=5) as answer:
        assert answer.status == 200
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5)
    with pytest.raises(ConfigError, match=f"metrics_host and metrics_port: 127.0.0.2:{port} cannot be listened on"):
        serve(Metrics(), Health(), port, "127.0.0.2")


def test_metrics_are_beside_it_and_nothing_else(served: tuple[int, Health, Metrics, Hands]) -> None:
    port, _, metrics, _ = served
    metrics.add("tidemill_labels_total", 4)
    assert b"tidemill_labels_total 4.0" in ask(port, "/metrics")[1]
    assert ask(port, "/")[0] == 404
