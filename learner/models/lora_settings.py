"""Settings of the adapter: its rank, its scale and the modules that carry it."""

from typing import Self

from pydantic import Field, model_validator

from streams.core.settings_section import SettingsSection

AUTO = ("auto",)
"""Targets that the base's family decides (reward/families)."""


class LoraSettings(SettingsSection):
    """The adapter: rank, scale, and where it attaches."""

    rank: int = Field(default=8, ge=1, le=512)
    """Rank of the adapter."""
    expert_rank: int = Field(default=0, ge=0, le=512)
    """Rank of the adapter on routed experts. There are many experts, so a low rank keeps the adapter small. 0: the same as ``rank``. The scale
    (alpha / rank) does not change."""
    alpha: float = Field(default=16.0, gt=0)
    """Scale of the adapter: its product is multiplied by alpha / rank."""
    attention_targets: tuple[str, ...] = AUTO
    """Modules that carry an adapter, of attention or (``gate_proj``, ``up_proj``, ``down_proj``) of a dense MLP. ``auto``: all of the base's
    attention that vLLM can serve. A name that matches nothing is an error."""
    expert_targets: tuple[str, ...] = AUTO
    """Fused parameters of the routed experts that carry an adapter. ``auto``: all that a base of a known family has (``gate_up_proj``,
    ``down_proj``); none of a dense or an unknown one. A name that matches nothing is an error."""
    shared_targets: tuple[str, ...] = ()
    """Modules of the shared experts that carry an adapter, for a base that has shared experts (DeepSeek: gate_proj, up_proj, down_proj). A name
    that matches nothing is an error."""

    @property
    def largest_rank(self) -> int:
        """The larger one of both ranks, which a replica must have room for."""
        return max(self.rank, self.expert_rank)

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if not (self.attention_targets or self.expert_targets or self.shared_targets):
            raise ValueError("learner.attention_targets, expert_targets and shared_targets are all empty: nothing would be trained")
        return self
