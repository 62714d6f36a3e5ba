"""A process of a chaos run, to be killed."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.local.embedded_broker import die_with_parent
from streams.kafka import KafkaSettings

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("CHAOS_SEED", "1"))


def kafka_at(servers: str, replication: int = 1) -> KafkaSettings:
    """Patience as short as a test can bear."""
    return KafkaSettings(bootstrap_servers=servers, session_timeout_s=6, request_timeout_s=10, delivery_timeout_s=20, replication=replication)


class Child:
    """One process and its log."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._command, self.log, self._environment = command, log, {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self.log.open("ab") as out:
            self._log_from = out.tell()
            self._process = subprocess.Popen(self._command, stdout=out, stderr=out, cwd=ROOT, env=self._environment, preexec_fn=die_with_parent)

    def has_begun(self) -> bool:
        """A part of the ring has begun its work since its last start, and from now on stops in good order when told to."""
        return b'"event": "starting"' in self.log.read_bytes()[self._log_from :]

    def tell(self, how: signal.Signals) -> None:
        """Nothing happens to one that is not there."""
        if self._process is not None:
            self._process.send_signal(how)

    def ended(self) -> int:
        """Wait for it; what it ended with."""
        if self._process is None:
            return 0
        status, self._process = self._process.wait(60), None
        return status

    def end(self, how: signal.Signals) -> int:
        """Tell it, and wait."""
        self.tell(how)
        return self.ended()

    def died(self) -> bool:
        """It ended by itself, other than well."""
        return self._process is not None and self._process.poll() not in (None, 0)
