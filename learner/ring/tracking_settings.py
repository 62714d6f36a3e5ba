"""Settings of tracking: where each step's figures are written besides the part's metrics."""

from typing import Literal

from pydantic import Field

from streams.core.settings_section import SettingsSection


class TrackingSettings(SettingsSection):
    """Where each step's figures go, for notebooks and for the tools that people compare runs with."""

    track: tuple[Literal["jsonl", "tensorboard", "wandb"], ...] = ("jsonl",)
    """``jsonl``: a line a step in ``tracking/steps.jsonl`` of the learner's state folder. ``tensorboard`` and ``wandb``: the same figures there; each
    needs the package of its name."""
    wandb_project: str = Field(default="tidemill", min_length=1, max_length=128)
    """Project at Weights & Biases."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """``offline``: files that ``wandb sync`` uploads later. ``online`` sends figures (no texts) to the server that ``WANDB_BASE_URL`` and
    ``WANDB_API_KEY`` name."""
