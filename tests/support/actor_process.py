"""An actor in a process of its own, as ``tidemill run actor`` starts it, and a client of its API."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from infra.local.embedded_broker import die_with_parent, free_port
from infra.local.startable import Startable
from streams.kafka import KafkaSettings


class ActorProcess(Startable):
    """Its run, artifacts and log lie under one folder. Several that share the folder need different names."""

    def __init__(self, kafka: KafkaSettings, base: Path, folder: Path, name: str, settings: Mapping[str, object],
                 environment: Mapping[str, str] | None = None) -> None:  # fmt: skip
        """``settings`` are overrides by their full names, such as ``actor.max_rank``."""
        self.kafka, self.base, self.folder, self.name, self.log = kafka, base, folder, name, folder / f"{name}.log"
        port = free_port()
        told = {"kafka.bootstrap_servers": kafka.bootstrap_servers, "run_folder": folder / name, "artifacts_uri": folder / "artifacts",
                "policy.base": base, "actor.port": port, "actor.replica": name, "actor.dtype": "float32", "actor.cpu_threads": 1}  # fmt: skip
        self._words = [word for key, value in {**told, **settings}.items() for word in ("--set", f"{key}={value}")]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=httpx.Limits(max_keepalive_connections=64))

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not launched"
        return self._process

    def start(self) -> None:
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        command = [sys.executable, "-P", "-m", "infra.cli", "run", "actor", *self._words]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=self._environment, preexec_fn=die_with_parent)

    def await_ready(self, timeout_s: float = 300.0) -> None:
        """Until it takes traffic; fails with the end of its log."""
        until = time.monotonic() + timeout_s
        while not self._ready():
            assert self.process.poll() is None, f"{self.name} did not start:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < until, f"{self.name} is not ready:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.5)

    def _ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self.http.close()
