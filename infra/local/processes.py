"""Supervises the ring's parts: each is a child process with a log file in the run folder. None is left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from infra.preparation.child_runs import die_with_parent
from infra.settings.config import without_settings

RESTARTS = 3
"""A part that dies after this many restarts is in a crash loop."""
QUIET_S = 600.0
"""After running for this long, earlier deaths no longer count."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Pause before a restart. It doubles with each death."""


@dataclass
class DeathRecord:
    """Counts deaths and schedules restarts, with exponential back-off up to a limit. Restarts never end."""

    lately: int = 0
    """Deaths in a row, each less than ``QUIET_S`` after the start."""
    in_all: int = 0
    again_at_s: float | None = None
    """None while it runs."""

    def died(self, lived_s: float, now_s: float) -> float:
        """Record a death after ``lived_s`` seconds. Returns the pause before the restart, in seconds."""
        self.lately = 1 if lived_s >= QUIET_S else self.lately + 1
        self.in_all += 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.lately - 1))
        self.again_at_s = now_s + pause_s
        return pause_s

    def due(self, now_s: float) -> bool:
        """True when it is time to restart."""
        return self.again_at_s is not None and now_s >= self.again_at_s

    def started(self) -> None:
        """Record a start."""
        self.again_at_s = None

    def state(self, lived_s: float) -> str:
        """``runs``, ``died`` or ``keeps dying``."""
        return "keeps dying" if self.keeps_dying(lived_s) else "runs" if self.again_at_s is None else "died"

    def keeps_dying(self, lived_s: float) -> bool:
        """True in a crash loop: more than ``RESTARTS`` deaths in a row, until it has run for ``QUIET_S``."""
        return self.lately > RESTARTS and lived_s < QUIET_S


@dataclass
class PartProcess:
    """One child process and its record of deaths."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    niceness: int = 0
    process: subprocess.Popen[bytes] | None = None
    deaths: DeathRecord = field(default_factory=DeathRecord)
    started_at_s: float = 0.0
    killed_at_s: float | None = None
    """While it is restarted on request: when it is killed unless it has stopped by then."""
    family: list[psutil.Process] = field(default_factory=list)
    """Its children when the restart was requested."""


class Processes:
    """Starts parts, restarts them when they die, and stops them in order. A part in a crash loop does not affect the others."""

    def __init__(self, logs: Path, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._logs, self._clock_s = logs, clock_s
        self._parts: dict[str, PartProcess] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None, niceness: int = 0) -> None:
        """Run ``tidemill <arguments>`` as the part ``name``. ``niceness``: 0 (highest priority) to 19. ``arguments`` name a file of all
        settings, so variables that set some are not passed on: they would override it."""
        command = [sys.executable, "-P", "-m", "infra.cli", *arguments]
        self._start(PartProcess(name, command, {**without_settings(os.environ), **(environment or {})}, self._log(name), niceness))

    def start_command(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None, niceness: int = 0) -> None:
        """Run any command as the part ``name``."""
        self._start(PartProcess(name, command, {**os.environ, **(environment or {})}, self._log(name), niceness))

    def begin_restart(self, name: str, timeout_s: float = 30.0) -> None:
        """Ask a part to stop; ``check`` starts it again once it has, at the latest ``timeout_s`` later. Not counted as a death."""
        part = self._parts[name]
        part.killed_at_s = self._clock_s() + timeout_s
        part.deaths.again_at_s = None
        if part.process is not None and part.process.poll() is None:
            part.family = _family(part.process.pid)[1:]
            part.process.terminate()

    def restarting(self, name: str) -> bool:
        """True from ``begin_restart`` until the part runs again."""
        return name in self._parts and self._parts[name].killed_at_s is not None

    def check(self) -> list[str]:
        """Record deaths, and restart the parts that are due. Returns one sentence per death."""
        return [sentence for part in self._parts.values() for sentence in self._checked(part)]

    def states(self) -> dict[str, str]:
        """State of each part by name: ``runs``, ``died`` (a restart is scheduled) or ``keeps dying``."""
        now_s = self._clock_s()
        return {part.name: part.deaths.state(_lived_s(part, now_s)) for part in self._parts.values()}

    def failing(self) -> dict[str, str]:
        """The parts in a crash loop, each with a sentence and the end of its log."""
        now_s = self._clock_s()
        found = [part for part in self._parts.values() if part.deaths.keeps_dying(_lived_s(part, now_s))]
        return {part.name: f"{part.name} died {part.deaths.lately} times; the end of {part.log}:\n{tail(part.log)}" for part in found}

    @property
    def restarts(self) -> dict[str, int]:
        """Number of restarts by part; parts without restarts are left out."""
        started = {part.name: part.deaths.in_all - (part.deaths.again_at_s is not None) for part in self._parts.values()}
        return {name: count for name, count in started.items() if count}

    def stop(self, *names: str, timeout_s: float = 30.0, children_s: float = 5.0) -> None:
        """Send SIGTERM to these parts at the same time and wait. After ``timeout_s``, SIGKILL to a part; after ``children_s`` more, to what is
        left of its children."""
        parts = [self._parts.pop(name) for name in names if name in self._parts]
        running = [(part.process, _family(part.process.pid)) for part in parts if part.process is not None]
        for process, _ in running:
            process.terminate()
        deadline_s = time.monotonic() + timeout_s
        left: list[psutil.Process] = []
        for process, family in running:
            try:
                process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                left += _family(process.pid)[1:]  # those of the last seconds too; once it is dead nobody knows them as its children
                process.kill()
                process.wait()
            left += family
        _end(left, children_s)

    def stop_all(self, timeout_s: float = 30.0, children_s: float = 5.0) -> None:
        """Stop all parts at the same time."""
        self.stop(*self._parts, timeout_s=timeout_s, children_s=children_s)

    def memory_mib(self) -> float:
        """Current memory of all parts and their children in MiB (proportional set size)."""
        return memory_mib([part.process.pid for part in self._parts.values() if part.process is not None])

    def cpu_s(self) -> dict[str, float]:
        """Processor time of each part so far, with its children, in seconds."""
        return {part.name: cpu_s(part.process.pid) for part in self._parts.values() if part.process is not None}

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _start(self, part: PartProcess) -> None:
        self._parts[part.name] = part
        self._launch(part)

    def _checked(self, part: PartProcess) -> list[str]:
        now_s = self._clock_s()
        if part.killed_at_s is not None:
            return self._restarted(part, now_s)
        if part.process is not None and part.deaths.again_at_s is None and (status := part.process.poll()) is not None:
            pause_s = part.deaths.died(now_s - part.started_at_s, now_s)
            if part.deaths.lately == RESTARTS + 1:
                again = "the other parts go on, and it is restarted at growing intervals"
                return [f"{part.name} keeps dying; {again}. The end of {part.log}:\n{tail(part.log)}"]
            return [f"{part.name} died (exit status {status}) and restarts in {pause_s:.0f} s; see {part.log}"]
        if part.deaths.due(now_s):
            self._launch(part)
        return []

    def _restarted(self, part: PartProcess, now_s: float) -> list[str]:
        if part.process is not None and part.process.poll() is None:
            if now_s >= (part.killed_at_s or 0.0):
                part.process.kill()
            return []
        _end(part.family, 1.0)
        part.killed_at_s, part.family = None, []
        self._launch(part)
        return [f"{part.name} was restarted on request"]

    def _launch(self, part: PartProcess) -> None:
        with part.log.open("ab") as out:
            # Its own process group, so that Ctrl-C reaches only the supervisor. Not its own session: Linux (autogroup) compares niceness only
            # within a session.
            part.process = subprocess.Popen(part.command, env=dict(part.environment), stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                            process_group=0, preexec_fn=partial(_before_exec, part.niceness))  # fmt: skip
        part.started_at_s = self._clock_s()
        part.deaths.started()


def _before_exec(niceness: int) -> None:
    """Runs in the child between fork and exec."""
    die_with_parent()
    os.nice(niceness)


def _lived_s(part: PartProcess, now_s: float) -> float:
    """Seconds since its last start; 0 while it does not run."""
    return 0.0 if part.deaths.again_at_s is not None else now_s - part.started_at_s


def cpu_s(pid: int) -> float:
    """Processor time of a process and its children (ended ones too), in seconds."""
    total = 0.0
    for process in _family(pid):
        try:
            used = process.cpu_times()
        except psutil.Error:
            continue
        total += used.user + used.system + used.children_user + used.children_system
    return total


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


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def _end(family: Sequence[psutil.Process], timeout_s: float) -> None:
    """End the remaining children of parts: SIGTERM, then SIGKILL."""
    left = [process for process in family if process.is_running()]
    for process in left:
        _signal(process, hard=False)
    _, alive = psutil.wait_procs(left, timeout=timeout_s)
    for process in alive:
        _signal(process, hard=True)
    psutil.wait_procs(alive, timeout=5)


def _signal(process: psutil.Process, hard: bool) -> None:
    try:
        process.kill() if hard else process.terminate()
    except psutil.NoSuchProcess:
        return
