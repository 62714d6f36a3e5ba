"""Health of a part: alive while its loops send heartbeats, ready while nothing that it needs is missing. Served beside its metrics."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from streams.core.errors import ConfigError
from streams.core.metrics import Metrics


class Health:
    """The health of one process. Thread-safe. One instance per process, passed in."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic, run_id: str = "") -> None:
        """``run_id``: of the ring that the process belongs to, which every answer then names; empty: none."""
        self._clock_s, self._lock, self.run_id = clock_s, threading.Lock(), run_id
        self._heartbeats: dict[str, tuple[float, float]] = {}
        self._missing: dict[str, None] = {}

    def heartbeat(self, loop: str, allowed_s: float) -> None:
        """A loop has completed a turn. Without another heartbeat within ``allowed_s`` it counts as hanging. Marks the loop as present."""
        with self._lock:
            self._heartbeats[loop] = (self._clock_s(), allowed_s)
            self._missing.pop(loop, None)

    def mark_missing(self, *names: str) -> None:
        """The part cannot work without these, and they are missing: ``kafka``, or a loop without a first heartbeat."""
        with self._lock:
            self._missing.update(dict.fromkeys(names))

    def mark_present(self, *names: str) -> None:
        """These are no longer missing."""
        with self._lock:
            for name in names:
                self._missing.pop(name, None)

    def hanging(self) -> list[str]:
        """Loops whose heartbeat is overdue. A process with one should be restarted."""
        with self._lock:
            return sorted(loop for loop, (at_s, allowed_s) in self._heartbeats.items() if self._clock_s() - at_s > allowed_s)

    def named(self, told: dict[str, object]) -> dict[str, object]:
        """An answer with the run's id in it: who asks can tell this ring from another one on the same port."""
        return told | ({"run_id": self.run_id} if self.run_id else {})

    def missing(self) -> list[str]:
        """Everything that keeps the part from working now. Empty when it is ready."""
        with self._lock:
            lacking = list(self._missing)
        return [*lacking, *(loop for loop in self.hanging() if loop not in lacking)]


def serve(metrics: Metrics, health: Health, port: int = 0, host: str = "127.0.0.1") -> int:
    """Serve ``/metrics``, ``/healthz`` and ``/readyz`` on a thread of their own. Port 0: a free one. Returns the port. Raises ConfigError when
    the address cannot be listened on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/metrics":
                    self._answer(200, "text/plain; version=0.0.4; charset=utf-8", metrics.text())
                case "/healthz":
                    self._state("alive", "hanging", health.hanging())
                case "/readyz":
                    self._state("ready", "missing", health.missing())
                case _:
                    self._answer(404, "text/plain", b"/metrics, /healthz, /readyz\n")

        def _state(self, well: str, ill: str, names: list[str]) -> None:
            status = "waiting" if names and well == "ready" else ill if names else well
            self._answer(503 if names else 200, "application/json", json.dumps(health.named({"status": status, ill: names})).encode())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    kind = type("MetricsServer", (ThreadingHTTPServer,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
    try:
        server = kind((host, port), Handler)
    except OSError as error:
        raise ConfigError(f"metrics_host and metrics_port: {host}:{port} cannot be listened on: {error.strerror or error}") from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(server.server_port)


def listening_socket(host: str, port: int, section: str) -> socket.socket:
    """A socket that a part listens on, bound before anything slow begins, and not yet listening; port 0 takes a free one.

    Raises ConfigError, which names ``section``'s settings.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(f"{section}.host:{section}.port = {host}:{port} cannot be listened on: {error.strerror}") from None
    return listening


def report_disk_space(metrics: Metrics, folder: Path, part: str) -> None:
    """Set ``tidemill_disk_free_ratio`` for the disk that holds ``folder``, or will hold it. Where it cannot be asked the last value stays:
    looking never fails a part."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    try:
        usage = shutil.disk_usage(there)
    except OSError:
        return
    metrics.set("tidemill_disk_free_ratio", usage.free / usage.total if usage.total else 0.0, part=part)
