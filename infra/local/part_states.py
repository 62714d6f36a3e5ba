"""Which parts of a ring run and which are in a crash loop: a file in the run folder, written by the ring, read by ``tidemill status``."""

import json
from collections.abc import Mapping
from pathlib import Path

import psutil

STATES_FILE = "parts.json"
RESTARTS_FILE = "restarts.json"
LOCK_FILE = "run.lock"
"""Locked by the ring that uses the folder. It contains the ring's process id."""


def write_states(run_folder: Path, states: Mapping[str, str], restarts: Mapping[str, int] | None = None) -> None:
    """Write the files and rename them into place, so that readers never see half of one. ``restarts``: their number by part."""
    for name, content in ((RESTARTS_FILE, restarts or {}), (STATES_FILE, states)):
        incoming = run_folder / f"{name}.incoming"
        incoming.write_text(json.dumps(content))
        incoming.rename(run_folder / name)


def ring_runs(run_folder: Path) -> bool:
    """True when a ring on this machine uses the folder."""
    try:
        return psutil.pid_exists(int((run_folder / LOCK_FILE).read_text()))
    except (OSError, ValueError):
        return False


def states_of(run_folder: Path) -> dict[str, str]:
    """State of each part by name, as the running ring wrote it; empty when no ring runs in this folder."""
    try:
        states = json.loads((run_folder / STATES_FILE).read_text()) if ring_runs(run_folder) else {}
    except (OSError, ValueError):
        return {}
    return {str(name): str(state) for name, state in states.items()} if isinstance(states, dict) else {}


def restarts_of(run_folder: Path) -> dict[str, int]:
    """Number of restarts by part, as the running ring wrote it; parts that were never restarted are left out."""
    try:
        restarts = json.loads((run_folder / RESTARTS_FILE).read_text()) if ring_runs(run_folder) else {}
    except (OSError, ValueError):
        return {}
    return {str(name): int(count) for name, count in restarts.items()} if isinstance(restarts, dict) else {}


def parts_line(states: Mapping[str, str]) -> str:
    """One line for a terminal. Parts that do not run come first."""
    ill = [f"{name} {state}" for name, state in states.items() if state != "runs"]
    well = [name for name, state in states.items() if state == "runs"]
    return "; ".join([*ill, f"{', '.join(well)} {'runs' if len(well) == 1 else 'run'}"] if well else ill)
