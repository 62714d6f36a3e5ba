"""Where LoRA attaches: the modules and fused parameters of the base that carry an adapter. The settings are in ``lora_settings.py``."""

from typing import Any

from learner.models.lora_settings import LoraSettings
from streams.core.errors import ConfigError

SHARED = "shared_experts"
"""What transformers calls the experts that every token passes through."""


def module_targets(settings: LoraSettings) -> list[str]:
    """Modules that carry an adapter: attention and shared experts."""
    return [*settings.attention_targets, *(f"{SHARED}.{name}" for name in settings.shared_targets)]


def parameter_targets(settings: LoraSettings) -> list[str]:
    """Fused parameters that carry an adapter: the routed experts."""
    return [f"mlp.experts.{name}" for name in settings.expert_targets]


def checked_targets(model: Any, settings: LoraSettings) -> tuple[str, ...]:
    """Names of all that carries an adapter. Raises ConfigError for a name that the base does not have; PEFT would silently ignore it."""
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    experts = {name.rpartition(".")[2] for name, _ in model.named_parameters() if ".mlp.experts." in name}
    shared = {name.rpartition(".")[2] for name, _ in model.named_modules() if f".{SHARED}." in name}
    groups = (
        ("attention", settings.attention_targets, modules),
        ("expert", settings.expert_targets, experts),
        ("shared", settings.shared_targets, shared),
    )
    for setting, names, present in groups:
        if missing := [name for name in names if name not in present]:
            raise ConfigError(f"learner.{setting}_targets names {', '.join(missing)}, which this base ({model.config.model_type}) does not have")
    return (*settings.attention_targets, *parameter_targets(settings), *(f"mlp.{SHARED}.{name}" for name in settings.shared_targets))
