"""The health of every part: what the ring says of its processes, and what each answers on ``/healthz``, ``/readyz`` and ``/metrics``."""

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from infra.local.part_states import restarts_of, ring_runs, states_of
from infra.settings.config import Settings
from infra.settings.part_addresses import in_url, metrics_targets, parts, served_at

ASK_S = 2.0
EVERY_S = 3.0
KAFKA = "kafka"
LAG = re.compile(r"^tidemill_consumer_lag_records\{[^}]*\} (\S+)$", re.M)
STARTED = re.compile(r"^tidemill_start_time_seconds\{[^}]*\} (\S+)$", re.M)
Ask = Callable[[str], tuple[int, bytes]]
"""Status and body that a URL answers. Raises OSError."""


@dataclass(frozen=True)
class PartHealth:
    """One part, as it is now."""

    name: str
    state: str
    """``ready``, ``waits`` (alive, and not ready), ``hangs``, ``down``, or what the ring says of a process that does not run."""
    told: str
    """The same in words for a person: what it waits for, how far it is behind."""
    restarts: int = 0
    lag: int | None = None
    """Records of the log that it has still to read; None where it reads none."""
    up_s: float | None = None
    """Seconds since its process started."""

    @property
    def is_well(self) -> bool:
        """True when it can do its work."""
        return self.state == "ready"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def health_of(settings: Settings, ask: Ask | None = None, now_s: Callable[[], float] = time.time) -> list[PartHealth]:
    """Every part of the ring, Kafka first. Parts on other machines are asked where ``metrics_port`` and ``metrics_host`` lead there."""
    ask = ask or _ask
    run = settings.run_folder
    states, restarts, here = states_of(run), restarts_of(run), ring_runs(run)
    found = [PartHealth(KAFKA, "ready" if states[KAFKA] == "runs" else states[KAFKA], states[KAFKA])] if KAFKA in states else []
    addresses = _addresses(settings, here)
    names = [name for name in parts(settings) if name in addresses or name in states]

    def one(name: str) -> PartHealth:
        return _part(name, states.get(name), restarts.get(name, 0), addresses.get(name), ask, now_s())

    with ThreadPoolExecutor(max(1, len(names))) as pool:
        return [*found, *pool.map(one, names)]


def health_lines(found: Sequence[PartHealth]) -> list[str]:
    """A line for each part, for a terminal."""
    return [f"{part.name:<9}{part.told}{_more(part)}" for part in found]


class HealthWatch:
    """Looks every few seconds, in a thread of its own, so that no page waits for a part that does not answer."""

    def __init__(self, look: Callable[[], list[PartHealth]]) -> None:
        self._look, self.found, self._stopping = look, list[PartHealth](), threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop it."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.found = self._look()
            self._stopping.wait(EVERY_S)


def _addresses(settings: Settings, here: bool) -> Mapping[str, str]:
    """``host:port`` of each part's health: as it wrote it itself at its start, else by the settings."""
    known = metrics_targets(settings) if here or settings.metrics_port else {}
    written = {name: address for name in parts(settings) if here and (address := served_at(settings.run_folder, name)) is not None}
    actor = {"actor": f"{in_url(settings.actor.host)}:{settings.actor.port}"} if settings.actor.port else {}
    return {**actor, **known, **written}


def _part(name: str, state: str | None, restarts: int, address: str | None, ask: Ask, now_s: float) -> PartHealth:
    if state is not None and state != "runs":
        return PartHealth(name, state, state, restarts)
    if address is None:
        return PartHealth(name, "unknown", "runs; it has not said where it can be asked", restarts)
    try:
        status, body = ask(f"http://{address}/healthz")
        if status != 200:
            return PartHealth(name, "hangs", f"hangs: {_names(body, 'hanging')}", restarts)
        status, body = ask(f"http://{address}/readyz")
        _, metrics = ask(f"http://{address}/metrics")
    except OSError:
        return PartHealth(name, "down", "starts or hangs: it does not answer" if state == "runs" else "does not answer", restarts)
    text = metrics.decode(errors="replace")
    lags, started = [float(lag) for lag in LAG.findall(text)], [float(at) for at in STARTED.findall(text)]
    lag, up_s = int(sum(lags)) if lags else None, max(0.0, now_s - min(started)) if started else None
    if status != 200:
        return PartHealth(name, "waits", f"waits for {_names(body, 'missing')}", restarts, lag, up_s)
    return PartHealth(name, "ready", "ready", restarts, lag, up_s)


def _names(body: bytes, key: str) -> str:
    try:
        return ", ".join(map(str, json.loads(body)[key])) or "nothing that it names"
    except (ValueError, KeyError, TypeError):
        return "something that it does not name"


def _more(part: PartHealth) -> str:
    behind = f", {part.lag} records behind" if part.lag else ""
    return behind + (f", {part.restarts} restart{'s' if part.restarts > 1 else ''}" if part.restarts else "")


def _ask(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=ASK_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
