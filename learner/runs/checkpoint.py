"""The learner's last checkpoints, as safetensors and JSON: adapter, optimizer, value head, step, the KL's weight. It is written atomically.

Everything random in a step comes from (seed, step), so the step's number is the only random state.
"""

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from learner.models.value_head import MOMENTS
from learner.ring.adapter_recipe import TAKEN, TakenStep
from learner.runs.trainer import Trainer
from streams.core.errors import BadArtifact

OPTIMIZER, VALUE_HEAD, STATE, STEPS = "optimizer.safetensors", "value_head.safetensors", "state.json", "steps.json"


def save(trainer: Trainer, folder: Path, taken: Sequence[TakenStep] = (), kept: int = 1) -> Path:
    """Write a checkpoint under ``folder``, with the steps ``taken`` since the last adapter, and keep the newest ``kept``. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{trainer.step_number:08d}"
    incoming = folder / f".{target.name}.{uuid.uuid4().hex}"
    trainer.policy.save_adapter(incoming)
    moments = {
        f"{name}/{moment}": torch.as_tensor(trainer.optimizer.state[weight][moment])
        for name, weight in trainer.policy.parameters.items()
        if weight in trainer.optimizer.state
        for moment in MOMENTS
    }
    save_file(moments, incoming / OPTIMIZER)
    if trainer.value_head is not None:
        save_file(trainer.value_head.tensors(), incoming / VALUE_HEAD)
    (incoming / STATE).write_text(json.dumps({"step": trainer.step_number, "kl_coefficient": trainer.kl_coefficient}))
    (incoming / STEPS).write_bytes(TAKEN.dump_json(tuple(taken)))
    shutil.rmtree(target, ignore_errors=True)
    incoming.rename(target)
    whole = _checkpoints(folder)
    newest = whole[max(0, whole.index(target) + 1 - kept) : whole.index(target) + 1]  # later ones are of a state that was gone back from
    for old in folder.iterdir():
        if old not in newest:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints under a folder, oldest first."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def load(trainer: Trainer, folder: Path) -> int:
    """Resume from the newest checkpoint under ``folder``. Returns its step; 0 when there is none. Raises BadArtifact."""
    found = _checkpoints(folder)
    if not found:
        return 0
    newest = found[-1]
    try:
        moments = load_file(newest / OPTIMIZER, device=str(trainer.policy.device))
        state = json.loads((newest / STATE).read_text())
        step, kl_coefficient = int(state["step"]), float(state.get("kl_coefficient", trainer.kl_coefficient))
        if trainer.value_head is not None and (newest / VALUE_HEAD).exists():  # not there when the value head is a new setting: it begins anew
            trainer.value_head.restore(load_file(newest / VALUE_HEAD, device=str(trainer.policy.device)))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        instead = f"go on from step {int(found[-2].name)}" if len(found) > 1 else "begin anew"
        raise BadArtifact(f"the checkpoint {newest} cannot be read ({error}): delete it to {instead}") from None
    trainer.policy.load_adapter(newest)
    for name, weight in trainer.policy.parameters.items():
        if f"{name}/{MOMENTS[0]}" in moments:
            found_moments = {moment: moments[f"{name}/{moment}"] for moment in MOMENTS}
            trainer.optimizer.state[weight] = found_moments | {"step": found_moments["step"].cpu()}
    trainer.step_number, trainer.kl_coefficient = step, kl_coefficient
    return step


def taken_steps(folder: Path) -> tuple[TakenStep, ...]:
    """The steps since the last adapter that the newest checkpoint under ``folder`` knows of."""
    found = _checkpoints(folder)
    return TAKEN.validate_json((found[-1] / STEPS).read_bytes()) if found and (found[-1] / STEPS).exists() else ()
