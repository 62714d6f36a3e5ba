"""Where LoRA attaches: the modules and fused parameters of the base that carry an adapter. The settings are in ``lora_settings.py``."""

from dataclasses import dataclass
from typing import Any

import structlog

from learner.models.lora_settings import AUTO, LoraSettings
from reward.families.known_families import family_names
from reward.families.model_family import ATTENTION, ModelFamily, RoutedExperts
from streams.core.errors import ConfigError

SHARED = "shared_experts"
"""What transformers calls the experts that every token passes through."""
EXPERTS = RoutedExperts().module
log = structlog.get_logger()


@dataclass(frozen=True)
class LoraTargets:
    """Last parts of the names of all that carries an adapter."""

    attention: tuple[str, ...]
    experts: tuple[str, ...]
    shared: tuple[str, ...]

    @property
    def modules(self) -> list[str]:
        """PEFT's ``target_modules``."""
        return [*self.attention, *(f"{SHARED}.{name}" for name in self.shared)]

    @property
    def parameters(self) -> list[str]:
        """PEFT's ``target_parameters``: the routed experts."""
        return [f"{EXPERTS}.{name}" for name in self.experts]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, as an adapter's event names them."""
        return (*self.attention, *self.parameters, *(f"mlp.{SHARED}.{name}" for name in self.shared))

    @property
    def vllm_modules(self) -> list[str]:
        """Modules that vLLM has to wrap (``lora_target_modules``)."""
        return sorted({*self.attention, *self.shared, *(["experts"] if self.experts else [])})

    def unserved(self, family: ModelFamily | None) -> str | None:
        """Why vLLM cannot serve an adapter on these; None when it can."""
        for name, reason in (family.vllm.unserved if family else {}).items():
            if name in self.attention:
                return f"learner.attention_targets names {name}: {reason}"
        if family and family.experts and 0 < len(self.experts) < len(family.experts.parameters):
            both = ", ".join(family.experts.parameters)
            return f"learner.expert_targets = {', '.join(self.experts)}: vLLM needs both ({both}) or none"
        return None


def targets_of(model: Any, settings: LoraSettings, family: ModelFamily | None, rounds_experts: bool = False) -> LoraTargets:
    """What carries an adapter: what the settings name or, where they say ``auto``, what the family has; of an unknown one attention alone.

    ``rounds_experts``: the experts' adapter is added to weights in bfloat16, as PEFT does, which rounds most of a small one away; ``auto`` then
    leaves the experts out.
    Raises ConfigError for a name that the base does not have; PEFT would silently ignore it.
    """
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    fused = {name.rpartition(".")[2] for name, _ in model.named_parameters() if f".{EXPERTS}." in name}
    shared = {name.rpartition(".")[2] for name, _ in model.named_modules() if f".{SHARED}." in name}
    own = family.served_attention if family else ATTENTION
    attention = tuple(name for name in own if name in modules) if settings.attention_targets == AUTO else settings.attention_targets
    own = family.experts.parameters if family and family.experts and not rounds_experts else ()
    experts = tuple(name for name in own if name in fused) if settings.expert_targets == AUTO else settings.expert_targets
    if family is None and settings.attention_targets == AUTO:
        if set(attention) != set(ATTENTION):
            raise ConfigError(
                f"a {model.config.model_type} is of no known family ({family_names()}), and its attention is not in {', '.join(ATTENTION)}: "
                "name the modules in learner.attention_targets"
            )
        log.warning("unknown_family", model_type=model.config.model_type, targets=attention, left_alone="experts and MLPs")
    for setting, names, present in (("attention", attention, modules), ("expert", experts, fused), ("shared", settings.shared_targets, shared)):
        if missing := [name for name in names if name not in present]:
            raise ConfigError(f"learner.{setting}_targets names {', '.join(missing)}, which this base ({model.config.model_type}) does not have")
    if not (attention or experts or settings.shared_targets):
        raise ConfigError(f"learner.attention_targets and expert_targets leave nothing of this base ({model.config.model_type}) to train")
    return LoraTargets(attention, experts, settings.shared_targets)
