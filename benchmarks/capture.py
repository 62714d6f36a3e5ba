"""What capture costs: ``make bench-capture``. The same server with capture on, off, and off behind LiteLLM's proxy, in turn in one run.

Two servers: a trivial one, whose engine answers at once, so that the layers themselves are seen at any rate (its throughput is no goal: beside
nothing, anything is much); and vLLM, with the random base of two layers, whose 48 tokens cost less than a person's message to parse, and with the
demo's policy, which is the smallest that anybody would talk to and has the goal.
Latency is taken at a fixed rate, from the moment at which a request was due; throughput with a fixed number of clients that ask again at
once. The outbox is on, and every captured answer must have reached Kafka. Figures are of the machine; the ratios are what is promised.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.capture_server import TOKENS
from infra.local.embedded_broker import Broker, BrokerSettings, free_port
from infra.local.kafka_jars import cache_folder
from learner.models.base_cache import prepare_base
from streams.core.metrics import Metrics
from streams.core.topics import EPISODES
from streams.kafka import KafkaSettings, create_topics, end_offsets

GOALS = {"trivial": {"added_p99_ms_on": 2.0}, "tiny": {}, "smollm2": {"throughput_on_to_off": 0.98}}
"""Ratios at least, milliseconds at most."""
WARM_S = 4.0
KEEP_ALIVE_S = 2.0
"""Idle connections are let go before a server does it, or a request would now and then meet one that is just being closed."""
WORDS = "Tell me about the sea, its tides and the mills that grind by them. "


@dataclass(frozen=True)
class Way:
    """One way to the engine."""

    name: str
    url: str
    headers: dict[str, str]


def main() -> None:
    """Measure one server, print, and add its figures to the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=list(GOALS), default="trivial", help="the trivial one, or vLLM with that base")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second for the latencies; 0: half of what the server can do")
    parser.add_argument("--clients", type=int, default=16, help="that ask without a pause for the throughput")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window-s", type=float, default=5.0)
    parser.add_argument("--litellm", type=Path, default=Path(".venv/litellm/bin/litellm"), help="LiteLLM's proxy; left out where it is missing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/capture.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Broker(BrokerSettings(), Path(name) / "broker") as broker:
        folder, kafka = Path(name), KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        create_topics(kafka)
        with served(folder, kafka, options.server) as url, proxied(folder, url, options.litellm) as proxy:
            ways = [Way("off", url, {}), Way("on", url, {"x-bench-capture": "on"})]
            ways += [Way("litellm", proxy, {"authorization": "Bearer sk-bench"})] if proxy else []
            told, captured = asyncio.run(measured(ways, options))
        arrived = sum(end_offsets(kafka, EPISODES, Metrics()).values())
    if arrived != captured:
        raise SystemExit(f"{captured} answers were captured, {arrived} episodes are on the log")
    told |= {"episodes_on_the_log": arrived, "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
             "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()}}  # fmt: skip
    show(options.server, told)
    before = json.loads(options.out.read_text()) if options.out.exists() else {}
    options.out.write_text(json.dumps(before | {options.server: told}, indent=1) + "\n")


async def measured(ways: list[Way], options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Windows of each way in turn, forth and back so that a drift of the machine meets all alike; how many were answered with capture on."""
    latencies_ms: defaultdict[str, list[float]] = defaultdict(list)
    per_second: defaultdict[str, list[float]] = defaultdict(list)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
        warm = {way.name: len(await closed_loop(session, way, options.clients, WARM_S)) for way in ways}
        captured = warm["on"]
        rate = options.rate or warm["off"] / WARM_S / 2
        for window in range(options.windows):
            for way in ways if window % 2 == 0 else ways[::-1]:
                found = await open_loop(session, way, rate, options.window_s)
                latencies_ms[way.name] += found
                began = time.perf_counter()
                asked = await closed_loop(session, way, options.clients, options.window_s)
                per_second[way.name].append(len(asked) / (time.perf_counter() - began))
                captured += (len(found) + len(asked)) * (way.name == "on")
    figures = {way.name: row(latencies_ms[way.name], per_second[way.name]) for way in ways}
    off = figures["off"]
    ratios = {f"throughput_{name}_to_off": figures[name]["per_second"] / off["per_second"] for name in figures if name != "off"}
    added = {f"added_{q}_ms_{name}": figures[name][f"{q}_ms"] - off[f"{q}_ms"] for name in figures if name != "off" for q in ("p50", "p99")}
    cost = {f"cost_us_{name}": 1e6 / figures[name]["per_second"] - 1e6 / off["per_second"] for name in figures if name != "off"}
    told = {"rate": rate, "clients": options.clients, "figures": figures, **ratios, **added, **cost}
    goals = GOALS[options.server]
    told |= {"goals": goals, "reached": {name: told[name] >= goal if "_to_" in name else told[name] <= goal for name, goal in goals.items()}}
    return told, captured


def row(latencies_ms: list[float], per_second: list[float]) -> dict[str, Any]:
    """The figures of one way."""
    quantiles = {f"p{round(100 * q)}_ms": sorted(latencies_ms)[min(len(latencies_ms) - 1, int(q * len(latencies_ms)))] for q in (0.5, 0.99)}
    return quantiles | {"requests": len(latencies_ms), "per_second": statistics.median(per_second), "per_second_by_window": per_second}


def body(number: int) -> bytes:
    """A chat of three messages, a kilobyte, never the same twice."""
    said = [{"role": "system", "content": WORDS * 8}, {"role": "user", "content": WORDS * 4}, {"role": "assistant", "content": WORDS},
            {"role": "user", "content": f"{WORDS} And number {number}?"}]  # fmt: skip
    return json.dumps({"model": "default", "messages": said, "max_tokens": TOKENS, "ignore_eos": True, "user": f"u-{number % 50}"}).encode()


async def ask(session: aiohttp.ClientSession, way: Way, number: int) -> None:
    async with session.post(
        f"{way.url}/v1/chat/completions", data=body(number), headers=way.headers | {"content-type": "application/json"}
    ) as answer:
        told = await answer.read()
        if answer.status != 200 or (way.name == "on") != ("x-tidemill-episode" in answer.headers):
            raise SystemExit(f"{way.name}: {answer.status} {told[:500]!r}")


async def open_loop(session: aiohttp.ClientSession, way: Way, rate: float, seconds: float) -> list[float]:
    """Milliseconds of each request, from when it was due, whatever became of those before it."""

    async def one(number: int, due: float) -> float:
        await asyncio.sleep(due - time.perf_counter())
        await ask(session, way, number)
        return (time.perf_counter() - due) * 1000

    began = time.perf_counter() + 0.1
    return list(await asyncio.gather(*(one(number, began + number / rate) for number in range(int(rate * seconds)))))


async def closed_loop(session: aiohttp.ClientSession, way: Way, clients: int, seconds: float) -> list[int]:
    """The requests that were answered, by clients that each wait for their answer and ask again."""
    until, answered = time.perf_counter() + seconds, list[int]()

    async def one(client: int) -> None:
        while time.perf_counter() < until:
            await ask(session, way, 1000 * client + len(answered))
            answered.append(client)

    await asyncio.gather(*(one(client) for client in range(clients)))
    return answered


@contextmanager
def served(folder: Path, kafka: KafkaSettings, server: Any) -> Iterator[str]:
    """The server, up."""
    base = str(prepare_base(server, cache_folder() / "bases")) if server != "trivial" else ""
    given = {
        "kafka": kafka.model_dump(mode="json"),
        "artifacts": str(folder / "artifacts"),
        "state": str(folder / "state"),
        "port": free_port(),
        "base": base,
    }
    with process(
        [sys.executable, "-m", "benchmarks.capture_server", json.dumps(given)], folder / "server.log", f"http://127.0.0.1:{given['port']}/readyz"
    ):
        yield f"http://127.0.0.1:{given['port']}"


@contextmanager
def proxied(folder: Path, url: str, litellm: Path) -> Iterator[str | None]:
    """LiteLLM's proxy before the server, as its documentation says to put it before vLLM; None where it is not installed."""
    if not litellm.exists():
        print("LiteLLM is not installed: its part is left out")
        yield None
        return
    model = {"model": "hosted_vllm/default", "api_base": f"{url}/v1", "api_key": "none"}
    config = {"model_list": [{"model_name": "default", "litellm_params": model}], "general_settings": {"master_key": "sk-bench"}}
    (folder / "litellm.yaml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    words = [str(litellm), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    with process(words, folder / "litellm.log", f"http://127.0.0.1:{port}/health/liveliness"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def process(words: list[str], log: Path, ready: str) -> Iterator[None]:
    """A process until the block ends; stopped so that it may put away what it has."""
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with log.open("wb") as out:
        running = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        until = time.monotonic() + 240
        while not answers(ready):
            if running.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{words[0]} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.3)
        yield
    finally:
        running.terminate()
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            running.kill()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def show(server: str, told: dict[str, Any]) -> None:
    """As a table."""
    print(f"{server}: at {told['rate']:.1f} requests a second, and with {told['clients']} clients that ask without a pause")
    for name, row in told["figures"].items():
        ratio = (
            ""
            if name == "off"
            else (f"   x{told[f'throughput_{name}_to_off']:.3f}, {told[f'cost_us_{name}']:+.0f} µs each, p99 {told[f'added_p99_ms_{name}']:+.2f} ms")
        )
        print(f"  {name:<8} p50 {row['p50_ms']:8.2f} ms   p99 {row['p99_ms']:8.2f} ms   {row['per_second']:8.1f} a second{ratio}")
    for name, goal in told["goals"].items():
        print(f"  {name}: goal {goal:g}, {'reached' if told['reached'][name] else 'MISSED'}")


if __name__ == "__main__":
    main()
