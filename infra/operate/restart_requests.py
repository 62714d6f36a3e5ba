"""How ``tidemill restart`` asks the ring for a restart: a file for each part in the run folder, which the ring deletes once the part runs anew."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from infra.local.part_states import ring_runs, states_of
from streams.core.errors import ConfigError, Unavailable

FOLDER = "restart"


def request_restart(run_folder: Path, part: str) -> Path:
    """Ask. Returns the file. Raises ConfigError when no ring runs in this folder, or has no such part."""
    if not ring_runs(run_folder):
        raise ConfigError(f"no ring of this machine runs in {run_folder}: start it with `tidemill up`")
    states = {name: state for name, state in states_of(run_folder).items() if name != "kafka"}
    if part not in states:
        raise ConfigError(f"{part} is not a part of the ring in {run_folder}; its parts are {', '.join(states)}")
    if states[part] not in ("runs", "died", "keeps dying"):
        raise ConfigError(f"{part} {states[part]}: it has not been started yet")
    (run_folder / FOLDER).mkdir(exist_ok=True)
    asked = run_folder / FOLDER / part
    asked.touch()
    return asked


def await_restart(asked: Path, timeout_s: float, clock_s: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep) -> None:
    """Wait until the ring has restarted the part. Raises Unavailable after ``timeout_s``; the request is then withdrawn."""
    until_s = clock_s() + timeout_s
    while asked.exists():
        if clock_s() > until_s:
            asked.unlink(missing_ok=True)
            raise Unavailable(f"the ring has not restarted {asked.name} within {timeout_s:.0f} s; see `tidemill logs {asked.name}`")
        pause(0.2)


def requested(run_folder: Path) -> Sequence[Path]:
    """The requests that wait."""
    return sorted((run_folder / FOLDER).glob("*"))
