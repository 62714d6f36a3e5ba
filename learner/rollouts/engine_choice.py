"""Chooses the engine that samples rollouts."""

from pathlib import Path

import structlog

from learner.models.lora_policy import Policy
from learner.rollouts.actor_rollouts import ActorEngine
from learner.rollouts.rollout_engines import RolloutEngine, TransformersEngine, VllmEngine
from learner.settings import LearnerSettings

log = structlog.get_logger()


def make_engine(policy: Policy, settings: LearnerSettings, state: Path = Path()) -> RolloutEngine:
    """The engine that the settings choose. ``state``: the learner's folder, where its loop tells which adapters were published."""
    on_vllm = policy.device.type == "cuda" and settings.model_parallel == 1
    wanted = settings.engine if settings.engine != "auto" else ("vllm" if on_vllm else "transformers")
    log.info("engine_starting", engine=wanted)
    if wanted == "actor":
        return ActorEngine(settings, state)
    if wanted == "vllm":
        return VllmEngine(policy, settings)
    return TransformersEngine(Policy(policy.base, settings, policy.device) if settings.sample_ahead else policy)
