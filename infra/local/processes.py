"""The ring's processes: each part is a child of its own, with its log in the run's folder, and none is left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from infra.local.embedded_broker import die_with_parent
from streams.core.errors import Unavailable

RESTARTS = 3


@dataclass
class PartProcess:
    """One child process and what has become of it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    started_at_s: float = field(default_factory=time.monotonic)


class Processes:
    """Starts parts, starts them again when they die, and ends them in order."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._parts: dict[str, PartProcess] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Run ``tidemill <arguments>`` as the part ``name``."""
        part = PartProcess(
            name, [sys.executable, "-P", "-m", "infra.cli", *arguments], {**os.environ, **(environment or {})}, self._logs / f"{name}.log"
        )
        self._parts[name] = part
        _launch(part)

    def check(self) -> list[str]:
        """Start again what has died; returns the names. Raises Unavailable when a part has died more than RESTARTS times."""
        died = [part for part in self._parts.values() if part.process is not None and part.process.poll() is not None]
        for part in died:
            if part.restarts >= RESTARTS:
                raise Unavailable(f"{part.name} died {part.restarts + 1} times; the end of {part.log}:\n{tail(part.log)}")
            part.restarts += 1
            _launch(part)
        return [part.name for part in died]

    @property
    def restarts(self) -> dict[str, int]:
        """How often each part was started again, of those that were."""
        return {part.name: part.restarts for part in self._parts.values() if part.restarts}

    def stop(self, *names: str, timeout_s: float = 30.0) -> None:
        """SIGTERM to these parts at once, and wait; SIGKILL to one and all its children after ``timeout_s``."""
        parts = [self._parts.pop(name) for name in names if name in self._parts]
        running = [(part.process, _family(part.process.pid)) for part in parts if part.process is not None]
        for process, _ in running:
            process.terminate()
        deadline_s = time.monotonic() + timeout_s
        for process, family in running:
            try:
                process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _end(family)

    def stop_all(self, timeout_s: float = 30.0) -> None:
        """Every part."""
        self.stop(*self._parts, timeout_s=timeout_s)

    def memory_mib(self) -> float:
        """Memory of the parts and all their children now: proportional set size where the kernel tells, in MiB."""
        return memory_mib([part.process.pid for part in self._parts.values() if part.process is not None])


def memory_mib(pids: Sequence[int]) -> float:
    """Proportional set size of these processes and their children, in MiB."""
    total = 0
    for pid in pids:
        for process in _family(pid):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
    return total / 2**20


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    if not log.exists():
        return "(no log)"
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 20_000))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])


def _launch(part: PartProcess) -> None:
    with part.log.open("ab") as out:
        part.process = subprocess.Popen(part.command, env=dict(part.environment), stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                        start_new_session=True, preexec_fn=die_with_parent)  # fmt: skip
    part.started_at_s = time.monotonic()


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def _end(family: Sequence[psutil.Process]) -> None:
    """What is left of a part's children goes too: asked first, then made to."""
    left = [process for process in family if process.is_running()]
    for process in left:
        _signal(process, hard=False)
    _, alive = psutil.wait_procs(left, timeout=5)
    for process in alive:
        _signal(process, hard=True)
    psutil.wait_procs(alive, timeout=5)


def _signal(process: psutil.Process, hard: bool) -> None:
    try:
        process.kill() if hard else process.terminate()
    except psutil.NoSuchProcess:
        return
