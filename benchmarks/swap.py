"""How long a new adapter takes from its publication to being attested by two replicas while they answer people, and a roll-back to being served.

``make bench-swap`` starts an embedded Kafka and two real actors (vLLM, the tiny base) in gated mode, keeps clients asking, and for one adapter
after the other: publishes it as a candidate, promotes it, and rolls it back. Beside it, in the same run: vLLM's own ``/v1/load_lora_adapter``
called by hand on both, which moves the same weights and proves nothing. Absolute figures are of the machine.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import Any

import httpx
import torch

from infra.local.embedded_broker import Broker, BrokerSettings
from learner.models.base_cache import prepare_base
from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.settings import LearnerSettings
from streams.artifacts.artifact_store import ArtifactStore, fingerprint
from streams.core.events import AdapterVersion, Promotion, new_id
from streams.core.metrics import Metrics
from streams.core.topics import ADAPTERS, ATTESTATIONS, PROMOTIONS
from streams.kafka import Consumer, KafkaSettings, Producer, create_topics
from tests.support.actor_process import ActorProcess

POLICY = "default"
GOALS_S = {"attested_p50": 2.0, "rolled_back_max": 5.0}
WORDS = ({"role": "user", "content": "Say hello to the sea."},)


class Replica(ActorProcess):
    """One actor in gated mode, which also lets vLLM load adapters by hand."""

    def __init__(self, number: int, kafka: KafkaSettings, base: Path, folder: Path) -> None:
        super().__init__(kafka, base, folder, f"replica-{number}", {"promotion.mode": "gated", "actor.cpu_threads": 1},
                         {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"})  # fmt: skip

    def chat(self, tokens: int) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json={"model": POLICY, "messages": WORDS, "max_tokens": tokens, "ignore_eos": True})

    def load_by_hand(self, name: str, folder: Path) -> None:
        """vLLM's own way, nothing proved."""
        self.http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)}).raise_for_status()

    def unload_by_hand(self, name: str) -> None:
        self.http.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()


class Load:
    """Clients that keep asking every replica; what failed is counted."""

    def __init__(self, replicas: Sequence[Replica], clients: int, tokens: int) -> None:
        self._replicas, self._tokens, self._over = replicas, tokens, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(replica,)) for replica in replicas for _ in range(clients)]
        self.answered, self.failed = 0, 0
        self._count = threading.Lock()

    def _ask(self, replica: Replica) -> None:
        while not self._over.is_set():
            try:
                good = replica.chat(self._tokens).status_code == 200
            except httpx.TransportError:
                good = False
            with self._count:
                self.answered, self.failed = self.answered + good, self.failed + (not good)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


class Log:
    """Writes what the learner and the promoter would write, and hears the replicas' attestations."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._producer, self._consumer = Producer(kafka, Metrics(), "bench"), Consumer(kafka, [ATTESTATIONS], "bench", Metrics())

    def publish(self, adapter: AdapterVersion) -> None:
        self._producer.publish(ADAPTERS, adapter)

    def move(self, adapter: str, move: str, **fields: Any) -> None:
        self._producer.publish(PROMOTIONS, Promotion.model_validate({
            "promotion_id": new_id("pr"), "policy": POLICY, "adapter": adapter, "move": move, "reason": "bench", "by": "bench",
            "at": datetime.now(UTC),
        } | fields))  # fmt: skip

    def await_attested(self, adapter: str, replicas: int, timeout_s: float = 60.0) -> None:
        proved: set[str] = set()
        deadline = time.monotonic() + timeout_s
        while len(proved) < replicas:
            for record in self._consumer.poll(0.5):
                event = ATTESTATIONS.decode(record.value)
                if event.adapter == adapter and not event.passed:
                    raise SystemExit(f"{event.replica} refused {adapter}: {event.reason}")
                proved |= {event.replica} if event.adapter == adapter else set()
            if time.monotonic() > deadline:
                raise SystemExit(f"{adapter} was attested by {sorted(proved)} alone within {timeout_s:g} s")

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()


def await_served(replicas: Sequence[Replica], adapter: str, timeout_s: float = 60.0) -> None:
    """Until each replica has answered by it."""

    def served(replica: Replica) -> None:
        deadline = time.monotonic() + timeout_s
        while replica.chat(1).headers.get("x-tidemill-adapter") != adapter:
            if time.monotonic() > deadline:
                raise SystemExit(f"{replica.name} does not serve {adapter} after {timeout_s:g} s")

    with ThreadPoolExecutor(len(replicas)) as pool:
        list(pool.map(served, replicas))


def make_adapters(base: Path, folder: Path, count: int) -> tuple[list[Path], tuple[str, ...]]:
    """Folders as the learner exports them: weights, configuration and probes; and what they change."""
    policy = Policy(base, LearnerSettings(dtype="float32", rank=8))
    prompt = policy.tokenizer.apply_chat_template(list(WORDS), add_generation_prompt=True, return_dict=False)
    output = tuple(range(400, 424))
    packed = pack([Branches(tuple(prompt), (output,))], 2)
    folders = []
    for version in range(1, count + 1):
        generator = torch.Generator().manual_seed(version)
        for name, weight in policy.parameters.items():
            if "lora_B" in name:
                weight.data = torch.randn(weight.shape, generator=generator) * 0.05
        made = folder / f"made-{version}"
        policy.save_adapter(made)
        with torch.no_grad():
            adapter = policy.stats(packed).logprobs_BT[0]
            with policy.reference():
                reference = policy.stats(packed).logprobs_BT[0]
        probe = {"prompt_ids": list(prompt), "output_ids": list(output), "adapter_logprobs": adapter.tolist(), "base_logprobs": reference.tolist()}
        (made / "probes.json").write_text(json.dumps({"probes": [probe] * 4}))
        folders.append(made)
    return folders, policy.targets


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    began = time.monotonic()
    yield
    into.append(time.monotonic() - began)


def measure(kafka: KafkaSettings, folder: Path, adapters: int, clients: int, tokens: int) -> dict[str, Any]:
    """The first adapter stays in production; each further one comes and goes."""
    base = prepare_base("tiny", folder / "bases")
    folders, targets = make_adapters(base, folder, adapters + 1)
    store, base_fingerprint = ArtifactStore(str(folder / "artifacts")), fingerprint(base)
    seconds: dict[str, list[float]] = {"attested": [], "served": [], "rolled_back": [], "loaded_by_hand": []}
    with ExitStack() as stack:
        replicas = [Replica(number, kafka, base, folder) for number in range(2)]
        for replica in replicas:
            stack.callback(replica.stop)
            replica.launch()
        for replica in replicas:
            replica.await_ready()
        log = Log(kafka)
        stack.callback(log.close)
        load = stack.enter_context(Load(replicas, clients, tokens))
        pool = stack.enter_context(ThreadPoolExecutor(len(replicas)))
        for version, made in enumerate(folders, start=1):
            name = f"{POLICY}@{version}"
            with timed(seconds["attested"]):
                log.publish(AdapterVersion(
                    policy=POLICY, version=version, artifact=store.put(made, f"adapters/{version}"), base_fingerprint=base_fingerprint, rank=8,
                    targets=targets, reward_model_version=1, step=version, created_at=datetime.now(UTC),
                ))  # fmt: skip
                log.move(name, "candidate")
                log.await_attested(name, len(replicas))
            with timed(seconds["served"]):
                log.move(name, "promoted")
                await_served(replicas, name)
            if version > 1:
                with timed(seconds["rolled_back"]):
                    log.move(name, "rolled_back")
                    await_served(replicas, f"{POLICY}@1")
            with timed(seconds["loaded_by_hand"]):
                list(pool.map(Replica.load_by_hand, replicas, repeat(f"hand-{version}"), repeat(made)))
            list(pool.map(Replica.unload_by_hand, replicas, repeat(f"hand-{version}")))
    return {"seconds": seconds, "answered": load.answered, "failed": load.failed}


def percentile(values: Sequence[float], part: float) -> float:
    """By nearest rank: of twenty the 99th is the largest."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def main() -> None:
    """Measure, print, write JSON; exits 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=20)
    parser.add_argument("--clients", type=int, default=2, help="of each replica, asking all the time")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/swap.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Broker(BrokerSettings(), Path(folder) / "broker") as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        create_topics(kafka)
        found = measure(kafka, Path(folder), options.adapters, options.clients, options.tokens)
    told = {
        name: {"count": len(values), "p50_s": statistics.median(values), "p99_s": percentile(values, 0.99), "max_s": max(values)}
        for name, values in found.pop("seconds").items()
    }
    ratio = told["attested"]["p50_s"] / told["loaded_by_hand"]["p50_s"]
    reached = {
        "attested_p50": told["attested"]["p50_s"] < GOALS_S["attested_p50"],
        "rolled_back_max": told["rolled_back"]["max_s"] < GOALS_S["rolled_back_max"],
        "failed": found["failed"] == 0,
    }
    for name, row in told.items():
        print(f"{name:<16} p50 {row['p50_s']:6.3f} s   p99 {row['p99_s']:6.3f} s   max {row['max_s']:6.3f} s   ({row['count']})")
    print(f"requests         {found['answered']} answered, {found['failed']} failed")
    print(f"published, checked, loaded and attested in {ratio:.1f} times what vLLM's load by hand takes (p50)")
    for name, good in reached.items():
        print(f"{name:<16} {'reached' if good else 'MISSED'}")
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "replicas": 2, "clients_a_replica": options.clients,
        "answer_tokens": options.tokens, **told, **found, "attested_to_loaded_by_hand_ratio": round(ratio, 2), "goals_s": GOALS_S, "reached": reached,
    }, indent=1) + "\n")  # fmt: skip
    sys.exit(0 if all(reached.values()) else 1)


if __name__ == "__main__":
    main()
