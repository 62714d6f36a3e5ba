"""A step's figures as JSON lines, for TensorBoard and for Weights & Biases."""

import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from learner.ring.step_tracking import StepTracking
from learner.settings import LearnerSettings
from streams.core.errors import ConfigError

AT = datetime(2030, 1, 1, tzinfo=UTC)


class Calls:
    """Stands for a writer or a run: remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.told.append((name, args, kwargs))


def settings(*track: str, **more: object) -> LearnerSettings:
    return LearnerSettings.model_validate({"track": track, **more})


def test_json_lines_are_the_default_and_hold_every_figure(tmp_path: Path) -> None:
    tracking = StepTracking.of(LearnerSettings(), tmp_path, "default")
    tracking.track(1, {"reward_mean": 0.5, "loss": math.nan}, AT)
    tracking.track(2, {"reward_mean": 0.75}, AT)
    tracking.close()
    lines = [json.loads(line) for line in (tmp_path / "tracking" / "steps.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "at": AT.isoformat(), "reward_mean": 0.5, "loss": None}, {"step": 2, "at": AT.isoformat(), "reward_mean": 0.75}]
    StepTracking.of(settings(), tmp_path / "none", "default").track(1, {}, AT)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorboard", "torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"learner\.track names {package}, which cannot be imported .*: install {package}"):
        StepTracking.of(settings(package), tmp_path, "default")


def test_tensorboard_gets_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, writer = ModuleType("torch.utils.tensorboard"), Calls()
    module.SummaryWriter = lambda folder: writer.told.append(("made", folder)) or writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tracking = StepTracking.of(settings("tensorboard"), tmp_path, "default")
    tracking.track(3, {"loss": 0.25}, AT)
    tracking.close()
    assert writer.told == [
        ("made", str(tmp_path / "tracking" / "tensorboard")),
        ("add_scalar", ("learner/loss", 0.25, 3, AT.timestamp()), {}),
        ("flush", (), {}),
        ("close", (), {}),
    ]


def test_wandb_is_offline_and_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, run = ModuleType("wandb"), Calls()
    module.init = lambda **told: run.told.append(("init", told)) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracking = StepTracking.of(settings("wandb", "jsonl"), tmp_path, "default", run_id="r-1")
    tracking.track(3, {"loss": 0.25, "kl_nats": math.inf}, AT)
    tracking.close()
    folder = str(tmp_path / "tracking")
    started = {"project": "tidemill", "name": "default", "dir": folder, "mode": "offline", "id": "r-1", "resume": "allow"}
    assert run.told == [("init", started), ("log", ({"loss": 0.25},), {"step": 3}), ("finish", (), {})]
    assert (tmp_path / "tracking" / "steps.jsonl").exists()


def test_a_full_disk_does_not_stop_learning(tmp_path: Path) -> None:
    tracking = StepTracking.of(LearnerSettings(), tmp_path, "default")
    (tmp_path / "tracking" / "steps.jsonl").mkdir()  # cannot be opened
    tracking.track(1, {"loss": 1.0}, AT)
