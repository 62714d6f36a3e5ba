"""Which parts of a ring run and which keep dying: a file in its folder, written by the ring, read by ``tidemill status``."""

import json
from collections.abc import Mapping
from pathlib import Path

import psutil

STATES_FILE = "parts.json"
LOCK_FILE = "run.lock"
"""Held by the ring that is in the folder; it holds the ring's process id."""


def write_states(run_folder: Path, states: Mapping[str, str]) -> None:
    """Into place at once, so that no reader sees half of it."""
    incoming = run_folder / f"{STATES_FILE}.incoming"
    incoming.write_text(json.dumps(states))
    incoming.rename(run_folder / STATES_FILE)


def states_of(run_folder: Path) -> dict[str, str]:
    """What the ring that runs in this folder says of its parts, by name; nothing where none runs on this machine."""
    try:
        runs = psutil.pid_exists(int((run_folder / LOCK_FILE).read_text()))
        states = json.loads((run_folder / STATES_FILE).read_text()) if runs else {}
    except (OSError, ValueError):
        return {}
    return {str(name): str(state) for name, state in states.items()} if isinstance(states, dict) else {}


def parts_line(states: Mapping[str, str]) -> str:
    """A line for a terminal: what does not run comes first."""
    ill = [f"{name} {state}" for name, state in states.items() if state != "runs"]
    well = [name for name, state in states.items() if state == "runs"]
    return "; ".join([*ill, f"{', '.join(well)} {'runs' if len(well) == 1 else 'run'}"] if well else ill)
