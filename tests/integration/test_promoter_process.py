"""The promoter as a process: killed between two moves, the next one goes on from the log; told to stop, it stops."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from streams.core.events import AdapterVersion, Artifact, Attestation, Promotion
from streams.core.metrics import Metrics
from streams.core.topics import ADAPTERS, ATTESTATIONS, PROMOTIONS
from streams.kafka import KafkaSettings, Producer, read_to_end

SHA = "0" * 64


class Process:
    """``tidemill run promoter``, with the tiny base."""

    def __init__(self, kafka: KafkaSettings, base: Path, folder: Path) -> None:
        words = [f"kafka.bootstrap_servers={kafka.bootstrap_servers}", f"run_folder={folder}", f"policy.base={base}", "promotion.mode=gated",
                 "promotion.poll_s=0.2", "promotion.tries_per_night=1"]  # fmt: skip
        command = [sys.executable, "-P", "-m", "infra.cli", "run", "promoter", *(part for word in words for part in ("--set", word))]
        self._command, self._log = command, folder / "promoter.log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(self._command, stdout=out, stderr=out, env=dict(os.environ))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        return self._log.read_text()


@pytest.fixture
def promoter(kafka_settings: KafkaSettings, tiny_base: Path, tmp_path: Path) -> Iterator[Process]:
    running = Process(kafka_settings, tiny_base, tmp_path)
    yield running
    if running.process.poll() is None:
        running.kill()


def until(claim: Callable[[], bool], process: Process, timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline, process.said[-3000:]
        assert process.process.poll() is None, process.said[-3000:]
        time.sleep(0.2)


def test_a_promoter_killed_between_two_moves_is_followed_by_one_that_goes_on_from_the_log(kafka_settings: KafkaSettings, promoter: Process) -> None:
    def log() -> list[Promotion]:
        return [PROMOTIONS.decode(record.value) for record in read_to_end(kafka_settings, PROMOTIONS, "test", Metrics())]

    producer, yesterday = Producer(kafka_settings, Metrics(), "test"), datetime.now(UTC) - timedelta(days=1)
    adapter = AdapterVersion(policy="default", version=4, artifact=Artifact(path="a", sha256=SHA, size_bytes=1), base_fingerprint="1" * 64, rank=8,
                             targets=("q_proj",), reward_model_version=1, step=1, metrics={"kl_nats": 0.2}, created_at=yesterday)  # fmt: skip
    producer.publish(ADAPTERS, adapter)
    until(lambda: [event.move for event in log()] == ["candidate"], promoter)
    promoter.kill()
    producer.publish(ATTESTATIONS, Attestation(replica="r", adapter="default@4", adapter_sha256=SHA, passed=True, reason="attested", load_ms=1.0,
                                               at=datetime.now(UTC)))  # fmt: skip
    promoter.start()
    until(lambda: len(log()) == 2, promoter)
    rejected = log()[-1]
    assert (rejected.adapter, rejected.move, rejected.by) == ("default@4", "rejected", "tidemill")
    assert {gate["gate"]: gate["passed"] for gate in rejected.evidence["gates"]} == {"attested": True, "reward_model": False}
    time.sleep(2.0)  # several turns more
    assert len(log()) == 2
    promoter.process.send_signal(signal.SIGTERM)
    assert promoter.process.wait(30) == 0
