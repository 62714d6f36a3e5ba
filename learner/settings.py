"""All settings of the learner (``learner.*``). Each topic's are in a ``*_settings.py`` beside the code that they steer."""

from typing import Self

from pydantic import Field, model_validator

from learner.distributed.process_settings import ProcessSettings
from learner.models.compute_settings import ComputeSettings
from learner.models.lora_settings import LoraSettings
from learner.objectives.feedback_objective_settings import FeedbackObjectiveSettings
from learner.objectives.rollout_objective_settings import RolloutObjectiveSettings
from learner.ring.learner_loop_settings import LearnerLoopSettings
from learner.ring.tracking_settings import TrackingSettings
from learner.rollouts.rollout_settings import RolloutSettings
from learner.runs.optimizer_settings import OptimizerSettings


class LearnerSettings(
    LoraSettings,
    RolloutSettings,
    RolloutObjectiveSettings,
    FeedbackObjectiveSettings,
    OptimizerSettings,
    ComputeSettings,
    LearnerLoopSettings,
    TrackingSettings,
    ProcessSettings,
):
    """How rewards become adapters. The defaults suit a small base on two cores."""

    seed: int = Field(default=0, ge=0)
    """Seed of the adapter's first weights, of the choice of prompts and of sampling."""

    def by_size(self, adapter_bytes: int) -> int:
        """Steps between two adapters of this size; where actors sample, at most as many as a rollout may be old."""
        steps = super().by_size(adapter_bytes)
        return min(steps, self.max_policy_lag + 1) if self.engine == "actor" else steps

    @model_validator(mode="after")
    def _something_is_learned_from(self) -> Self:
        if not (self.rollout_weight or self.thumb_weight or self.hindsight_weight):
            raise ValueError("learner.rollout_weight, thumb_weight and hindsight_weight are all 0: nothing would be learned from")
        return self

    @model_validator(mode="after")
    def _the_layout_fits_the_work(self) -> Self:
        if self.model_parallel > 1 and self.engine == "vllm":
            raise ValueError("learner.engine = vllm holds a whole base on one device; with learner.model_parallel above 1 use transformers")
        if self.engine == "actor":
            if self.temperature != 1.0:
                raise ValueError(f"learner.engine = actor samples at temperature 1 only (learner.temperature = {self.temperature:g}):"
                                 " actors tell the log-probabilities before temperature")  # fmt: skip
            if self.publish_every - 1 > self.max_policy_lag:
                raise ValueError(f"learner.engine = actor samples with published adapters: learner.publish_every = {self.publish_every} must be"
                                 f" at most learner.max_policy_lag + 1 = {self.max_policy_lag + 1}")  # fmt: skip
            if self.replay_routing:
                raise ValueError("learner.replay_routing needs learner.engine = transformers: actors do not tell what their routers chose")
        if self.sample_ahead and (self.max_policy_lag == 0 or self.model_parallel > 1):
            raise ValueError("learner.sample_ahead needs learner.max_policy_lag of at least 1 and an undivided base (learner.model_parallel = 1)")
        if self.resample_tries and self.model_parallel > 1:
            raise ValueError(
                "learner.resample_tries needs an undivided base (learner.model_parallel = 1): all parts would have to agree on what to draw"
            )
        if self.overlong_tokens > self.max_output_tokens:
            raise ValueError(f"learner.overlong_tokens = {self.overlong_tokens} exceeds learner.max_output_tokens = {self.max_output_tokens}")
        if self.advantage == "gae" and self.workers > self.model_parallel:
            raise ValueError("learner.advantage = gae fits its value head in one process: learner.workers must equal learner.model_parallel")
        return self
