"""Settings of the learner's computation: precision, threads and memory."""

from typing import Literal

from pydantic import Field

from streams.core.settings_section import SettingsSection

HEAD_ROWS = 1024
"""Tokens that the output head takes at a time: enough for full speed; a vocabulary's worth of numbers for each is a large table."""


class ComputeSettings(SettingsSection):
    """Precision, threads and memory."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the base. The adapter and its optimizer are always float32. ``auto``: the faster one on this machine, by a short measurement
    before the ring or the part starts; bfloat16 on a GPU, and where the learner's code is used without a ring."""
    expert_layout: Literal["auto", "plain", "packed"] = "auto"
    """Memory layout of the experts' weights while a CPU samples. ``packed``: a second copy in oneDNN's own layout, which spares a rearrangement at
    every token. ``auto``: the faster one on this machine, as for ``dtype``."""
    expert_products: Literal["auto", "each", "grouped"] = "auto"
    """How experts are multiplied. ``each``: one after the other. ``grouped``: all in a few grouped products, without asking the device how many
    tokens each expert got. ``auto``: grouped on a GPU that has them, in bfloat16."""
    threads: int = Field(default=0, ge=0)
    """Threads for sampling and training, which take turns. 0: as many as are fastest on this machine, as for ``dtype``; one per core without
    a measurement."""
    train_threads: int = Field(default=0, ge=0)
    """Threads for training alone. Training's large matrix products share cores with other processes better than sampling's small ones do, so it
    may use more. 0: the fastest number when ``threads`` is 0 too, else the same as ``threads``."""
    background: bool = True
    """On a CPU, sample and train only with processor time that nothing else on the machine wants (Linux's idle scheduling class): people who wait
    for an answer come first. False where the learner must make progress beside a machine that is always busy."""
    microbatch_tokens: int = Field(default=1024, ge=1)
    """Tokens in one forward pass (a prompt counts once for its group). A group that is larger gets a pass of its own."""
    recompute_activations: bool = False
    """Recompute each layer's activations in the backward pass instead of keeping them: slower, with much less memory."""

    @property
    def precision(self) -> Literal["bfloat16", "float32"]:
        """The precision: ``auto`` without a measurement is bfloat16."""
        return "bfloat16" if self.dtype == "auto" else self.dtype

    @property
    def packs_weights(self) -> bool:
        """True for packed weights: ``auto`` without a measurement is packed in bfloat16."""
        return self.expert_layout == "packed" or (self.expert_layout == "auto" and self.precision == "bfloat16")
