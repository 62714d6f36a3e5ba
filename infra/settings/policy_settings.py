"""Settings of the policy and its base."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from streams.core.settings_section import SettingsSection


class PolicySettings(SettingsSection):
    """The policy that people talk to, and its base."""

    name: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name that clients send as ``model``."""
    base: Literal["smollm2", "tiny"] | Path = "smollm2"
    """``smollm2``: SmolLM2-135M-Instruct upcycled to an MoE. ``tiny``: a random 2-layer MoE, for tests. Or the folder of your own model."""
    experts: int = Field(default=4, ge=1, le=64)
    """Number of experts of an upcycled base."""
    experts_per_token: int = Field(default=2, ge=1, le=64)
    """Experts used for each token of an upcycled base."""
