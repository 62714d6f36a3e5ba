"""Writes each step's figures to JSON lines, TensorBoard or Weights & Biases. Numbers only: nothing that people said leaves in this way."""

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import structlog

from learner.ring.tracking_settings import TrackingSettings
from streams.core.errors import ConfigError

STEPS = "steps.jsonl"
log = structlog.get_logger()


class StepTracker(Protocol):
    """Takes the figures of steps, in order. After a crash a step may come again."""

    def track(self, step: int, figures: Mapping[str, float], at: datetime) -> None: ...
    def close(self) -> None: ...


class JsonlTracker:
    """One JSON object a line: ``step``, ``at``, and the figures; null where one is not finite."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / STEPS

    def track(self, step: int, figures: Mapping[str, float], at: datetime) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        with self._path.open("a") as lines:
            lines.write(json.dumps({"step": step, "at": at.isoformat(), **finite}) + "\n")

    def close(self) -> None:
        return None


class TensorboardTracker:
    """TensorBoard's event files; every figure is a scalar ``learner/<name>``."""

    def __init__(self, folder: Path) -> None:
        self._writer: Any = _imported("tensorboard", "torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def track(self, step: int, figures: Mapping[str, float], at: datetime) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"learner/{name}", value, step, at.timestamp())
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases, offline unless set otherwise. A restart goes on with the same run."""

    def __init__(self, folder: Path, settings: TrackingSettings, policy: str, run_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        wandb = _imported("wandb", "wandb")
        told = {"id": run_id, "resume": "allow"} if run_id else {}
        self._run: Any = wandb.init(project=settings.wandb_project, name=policy, dir=str(folder), mode=settings.wandb_mode, **told)

    def track(self, step: int, figures: Mapping[str, float], at: datetime) -> None:
        self._run.log({name: value for name, value in figures.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        self._run.finish()


class StepTracking:
    """All trackers of a learner. One that cannot write is told in the log and does not stop learning."""

    def __init__(self, trackers: Mapping[str, StepTracker]) -> None:
        self._trackers = trackers

    @classmethod
    def of(cls, settings: TrackingSettings, state: Path, policy: str, run_id: str = "") -> "StepTracking":
        """The trackers that the settings name. Raises ConfigError where a package is missing."""
        folder = state / "tracking"
        made: dict[str, Callable[[], StepTracker]] = {
            "jsonl": lambda: JsonlTracker(folder),
            "tensorboard": lambda: TensorboardTracker(folder),
            "wandb": lambda: WandbTracker(folder, settings, policy, run_id),
        }
        return cls({name: made[name]() for name in dict.fromkeys(settings.track)})

    def track(self, step: int, figures: Mapping[str, float], at: datetime) -> None:
        """The figures of one step."""
        for name, tracker in self._trackers.items():
            try:
                tracker.track(step, figures, at)
            except OSError as error:
                log.warning("a step's figures were not written", tracker=name, step=step, error=str(error))

    def close(self) -> None:
        """Finish all files."""
        for tracker in self._trackers.values():
            tracker.close()


def _imported(package: str, module: str) -> ModuleType:
    """A module of a package that only this needs."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"learner.track names {package}, which cannot be imported ({error}): install {package}, or take it out") from None
