"""Settings of the learner's computation: precision, threads and memory."""

from typing import Literal

from pydantic import Field

from streams.core.settings_section import SettingsSection


class ComputeSettings(SettingsSection):
    """Precision, threads and memory."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the base. The adapter and its optimizer are always float32."""
    threads: int = Field(default=0, ge=0)
    """Threads for sampling and training, which take turns. 0: one for each core of the machine."""
    train_threads: int = Field(default=0, ge=0)
    """Threads for training alone. Training's large matrix products share cores with other processes better than sampling's small ones do, so it
    may use more. 0: the same as ``threads``."""
    microbatch_tokens: int = Field(default=1024, ge=1)
    """Tokens in one forward pass (a prompt counts once for its group). A group that is larger gets a pass of its own."""
    recompute_activations: bool = False
    """Recompute each layer's activations in the backward pass instead of keeping them: slower, with much less memory."""
