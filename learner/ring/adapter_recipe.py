"""What made an adapter, stored with it: settings, and for each step since its parent the prompts, the reward model and the labelled answers.

With them any adapter can be rebuilt (``adapter_replay.py``): everything random in a step comes from (seed, step).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from learner.ring.labelled_answers import LabelledAnswer
from learner.runs.trainer import Prompt
from learner.settings import LearnerSettings
from streams.core.errors import BadArtifact
from streams.core.events import Artifact, Sha256

RECIPE = "recipe.json"
OF_THE_LOOP = frozenset({
    "prompts_kept", "prompts_needed", "tool_prompts", "judged_kept", "judged_per_step", "max_steps", "publish_every", "checkpoint_every", "probes",
    "checkpoints_kept", "evaluate_every", "evaluation_prompts", "held_out_ratio", "steps_without_labels", "recent_version_steps", "track",
    "wandb_project", "wandb_mode",
    "ray_address", "ray_num_cpus", "ray_num_gpus", "ray_object_store_bytes", "worker_timeout_s",
    "rollout_url", "rollout_key", "rollout_requests", "rollout_timeout_s", "rollout_patience_s",
})  # fmt: skip
"""Settings that decide which steps are taken and where they run, not the result of a step."""


class TakenStep(BaseModel):
    """The inputs of one step, besides the adapter and the optimizer before it."""

    model_config = ConfigDict(frozen=True)

    step: int = Field(ge=1)
    """Its number, from 1."""
    reward_model: Artifact
    prompts: tuple[Prompt, ...]
    judged: tuple[LabelledAnswer, ...] = ()
    """Live answers with feedback. The field keeps its first name: published recipes have it."""
    """Live answers that it learned from, with what people said of them."""
    ahead: bool = False
    """True when its rollouts were sampled during the step before, from the adapter before that step."""


TAKEN = TypeAdapter(tuple[TakenStep, ...])


class AdapterRecipe(BaseModel):
    """How to get from the parent adapter to this one."""

    model_config = ConfigDict(frozen=True)

    settings: LearnerSettings
    features: Sha256
    """Fingerprint of the features of its reward models."""
    engine: str
    device: str
    threads: int
    torch: str = torch.__version__
    after_step: int = Field(ge=0)
    """The parent's step; 0 when it began with a fresh adapter."""
    steps: tuple[TakenStep, ...]
    """The steps since the parent, in order."""

    @property
    def deciding(self) -> dict[str, object]:
        """Everything that the steps' results depend on, except their inputs."""
        return {"threads": self.threads, **self.settings.model_dump(exclude=set(OF_THE_LOOP))}

    @property
    def whole(self) -> bool:
        """False when a kill lost steps between the parent and this adapter: such an adapter cannot be rebuilt."""
        return [taken.step for taken in self.steps] == list(range(self.after_step + 1, self.after_step + 1 + len(self.steps))) != []

    def write(self, folder: Path) -> None:
        """Write the recipe beside the adapter's files."""
        (folder / RECIPE).write_text(self.model_dump_json())

    @classmethod
    def read(cls, folder: Path) -> "AdapterRecipe":
        """Read a recipe. Raises BadArtifact when it is missing or cannot be read."""
        try:
            return cls.model_validate_json((folder / RECIPE).read_bytes())
        except (OSError, ValidationError) as error:
            raise BadArtifact(f"{folder} holds no readable {RECIPE}: {type(error).__name__}") from None


class StepHistory:
    """The steps taken since the parent, stored with the checkpoint so that a restart loses none of them."""

    def __init__(self, taken: Sequence[TakenStep] = (), resumed_at: int = 0) -> None:
        self.taken = tuple(taken)
        self._resumed_at = resumed_at
        self._published: set[int] = set()

    def note(self, taken: TakenStep) -> None:
        """Add a step."""
        self.taken = (*self.taken, taken)

    def since(self, parent_step: int) -> tuple[TakenStep, ...]:
        """The steps after the parent's; older ones are dropped. Empty when a kill lost the parent's steps."""
        if parent_step > self._resumed_at and parent_step not in self._published:
            return ()
        self.taken = tuple(taken for taken in self.taken if taken.step > parent_step)
        if self.taken:
            self._published.add(self.taken[-1].step)
        return self.taken
