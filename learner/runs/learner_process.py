"""The learner's process: policy, optimizer, engine and reward model together on one device."""

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from learner.distributed.process_mesh import ALONE, join
from learner.models.lora_policy import Policy
from learner.ring.adapter_recipe import AdapterRecipe, StepHistory, TakenStep
from learner.ring.labelled_answers import LabelledAnswer
from learner.rollouts.engine_choice import make_engine
from learner.rollouts.rollout_engines import Rollout
from learner.runs import checkpoint
from learner.runs.adapter_probes import probes_of
from learner.runs.idle_priority import lower_priority
from learner.runs.step_progress import PROGRESS_FILE, StepTeller
from learner.runs.trainer import Prompt, StepResult, Trainer
from learner.settings import LearnerSettings
from reward.features.featurizer import Features
from reward.features.part_features import features_of_part
from reward.fit.reward_model import RewardModel
from reward.settings import RewardSettings
from streams.core.errors import BadArtifact, ConfigError
from streams.core.events import Artifact

log = structlog.get_logger()


@dataclass(frozen=True)
class StepReport:
    """A step's result for the loop: its number and figures, without texts."""

    step: int
    metrics: dict[str, float]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Prompts and labelled answers that could not be learned from, by reason: ``too_long``, ``template`` (refuses it), ``tool_calls``, ``media``."""


class RewardScorer:
    """The newest reward model's lower confidence bound, in [0, 1]: answers about which it is unsure get less."""

    def __init__(self, featurizer: Features, model: RewardModel) -> None:
        self._featurizer, self._model = featurizer, model

    def __call__(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        return [float(lower) for lower in self._model.score(self._featurizer.features(pairs)).lower_N]


@dataclass(frozen=True)
class LearnerPlace:
    """Which of how many processes that learn together one is."""

    rank: int
    size: int
    meeting_place: Path
    """A file that all processes see and that was never used before."""


class LearnerProcess:
    """One learner, or one of several that take every call together. It resumes from the last checkpoint when it is made, and is told
    everything else with each call."""

    def __init__(self, settings: LearnerSettings, reward: RewardSettings, base: Path, state: Path, place: LearnerPlace | None = None) -> None:
        torch.set_num_threads(threads(settings))
        self._settings, self._state = settings, state
        device = torch.device("cuda" if settings.ray_num_gpus > 0 and torch.cuda.is_available() else "cpu")
        if settings.background and device.type == "cpu":
            log.info("in_the_background", threads=lower_priority())
        self._mesh = ALONE
        if place is not None:
            self._mesh = join(place.meeting_place, place.rank, place.size, settings.model_parallel, device, settings.worker_timeout_s)
        self._policy = Policy(base, settings, device, self._mesh)
        if problem := self._policy.lora_targets.unserved(self._policy.family):
            raise ConfigError(f"{problem} (actors would refuse every adapter)")
        teller = StepTeller(lambda progress: progress.write(state / PROGRESS_FILE)) if self._mesh.leads else None
        self._trainer = Trainer(self._policy, make_engine(self._policy, settings, state), settings, teller)
        step = checkpoint.load(self._trainer, state / "checkpoints")
        self._notebook = StepHistory(checkpoint.taken_steps(state / "checkpoints"), resumed_at=step)
        self._featurizer = features_of_part(base, reward)
        self._reward: tuple[Path, RewardModel] | None = None
        self._last: StepResult | None = None
        self._exported: dict[str, Tensor] | None = None
        """The adapter's weights when it was last exported; none since this process started."""
        log.info("learner_ready", step=step, device=device.type, threads=torch.get_num_threads(), engine=self._trainer.engine.name,
                 rank=place.rank if place else 0, processes=place.size if place else 1)  # fmt: skip

    def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    def features(self) -> str:
        """Fingerprint of the features that a reward model must have been fitted on to be of use here."""
        return self._featurizer.fingerprint

    def steps(self) -> int:
        """Steps taken and saved."""
        return self._trainer.step_number

    def step(self, prompts: list[Prompt], reward_folder: Path, reward_model: Artifact, labelled: Sequence[LabelledAnswer] = (),
             following: Sequence[Prompt] = ()) -> StepReport:  # fmt: skip
        """One step on these prompts with the reward model in a folder, and on live answers; checkpointed before it is reported.

        ``following``: the next step's prompts, which are sampled meanwhile."""
        left_out: Counter[str] = Counter()

        def fits(reason: str | None) -> bool:
            left_out.update([reason] if reason is not None else [])
            return reason is None

        fitting = [prompt for prompt in prompts if fits(self._trainer.why_not(prompt))]
        if not fitting:
            log.warning("no_prompt_fits", prompts=len(prompts), max_prompt_tokens=self._settings.max_prompt_tokens, left_out=dict(left_out))
            return StepReport(self._trainer.step_number, {}, dict(left_out))
        told = tuple(one for one in labelled if fits(self._trainer.why_not_labelled(one)))
        self._last = self._trainer.step(fitting, RewardScorer(self._featurizer, self._reward_model(reward_folder)), told,
                                        [prompt for prompt in following if self._trainer.fits(prompt)])  # fmt: skip
        self._notebook.note(TakenStep(step=self._last.step, reward_model=reward_model, prompts=tuple(fitting), judged=told, ahead=self._last.ahead))
        if self._mesh.leads and self._settings.saves(self._last.step, self.adapter_bytes()):
            checkpoint.save(self._trainer, self._state / "checkpoints", self._notebook.taken, self._settings.checkpoints_kept)
        return StepReport(self._last.step, self._last.metrics, dict(left_out))

    def adapter_bytes(self) -> int:
        """Size of an adapter's weights."""
        return sum(weight.numel() * weight.element_size() for weight in self._policy.parameters.values())

    def evaluate(self, prompts: list[Prompt], reward_folder: Path) -> dict[str, float]:
        """Figures of one answer to each held-out prompt that fits, by the reward model in a folder; empty where none fits."""
        fitting = [prompt for prompt in prompts if self._trainer.fits(prompt)]
        return self._trainer.evaluate(fitting, RewardScorer(self._featurizer, self._reward_model(reward_folder))) if fitting else {}

    def export(self, folder: Path, parent_step: int) -> tuple[str, ...]:
        """Write the adapter, its probes and its recipe from the parent on into ``folder``. Returns the names that the adapter is on."""
        probes, recipe = self._probes(), self._recipe(parent_step)  # every process of a split base is needed for the probes
        if self._mesh.leads:
            incoming = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
            self._policy.save_adapter(incoming)
            (incoming / "probes.json").write_text(json.dumps(probes))
            recipe.write(incoming)
            shutil.rmtree(folder, ignore_errors=True)
            incoming.rename(folder)
        return self._policy.targets

    def _recipe(self, parent_step: int) -> AdapterRecipe:
        return AdapterRecipe(
            settings=self._settings,
            features=self._featurizer.fingerprint,
            engine=self._trainer.engine.name,
            device=self._policy.device.type,
            threads=torch.get_num_threads(),
            after_step=parent_step,
            steps=self._notebook.since(parent_step),
        )

    def _probes(self) -> dict[str, Any]:
        """By which a replica is known: of the last step's rollouts, those on which adapter and base differed most before it."""
        if self._last is None:
            raise BadArtifact("an adapter is exported after a step, whose rollouts serve as its probes")
        probes = probes_of(self._policy, self._telling(self._last), self._settings.probes, self._exported)
        self._exported = {name: weight.detach().clone() for name, weight in self._policy.parameters.items()}
        return probes

    def _telling(self, last: StepResult) -> list[Rollout]:
        order = sorted(range(len(last.rollouts)), key=lambda n: -last.base_gaps[n])
        return [last.rollouts[n] for n in order]

    def _reward_model(self, folder: Path) -> RewardModel:
        if self._reward is None or self._reward[0] != folder:
            model = RewardModel.load(folder)
            if model.features != self._featurizer.fingerprint:
                raise BadArtifact(f"reward model {folder.name} was fitted on other features: learner and reward updater need equal [reward] settings")
            self._reward = (folder, model)
        return self._reward[1]


def threads(settings: LearnerSettings) -> int:
    """Threads of each of the learner's processes: as asked for, else the cores this process may use, shared out."""
    return settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.workers)
