"""Settings of the learner's loop: when it starts and ends, what it draws from, and how often it saves and publishes."""

from typing import Self

from pydantic import Field, model_validator

from streams.core.settings_section import SettingsSection

SMALL_BYTES = 128 << 20
"""Adapters up to this size are published at every step."""
MOST_STEPS = 20


def steps_by_size(adapter_bytes: int) -> int:
    """Steps between published adapters of this size: about as many bytes a step as ``SMALL_BYTES``."""
    return min(MOST_STEPS, max(1, -(-adapter_bytes // SMALL_BYTES)))


class LearnerLoopSettings(SettingsSection):
    """The loop: prompts to draw from, when to stop, how often to save and to publish."""

    prompts_kept: int = Field(default=256, ge=1)
    """Most recent distinct prompts to draw from."""
    prompts_needed: int = Field(default=8, ge=1)
    """Distinct prompts needed before the first step."""
    tool_prompts: bool = False
    """Also sample prompts that offer tools, and those that end in a tool's result. The tools are not run: the reward model scores the call."""
    max_steps: int = Field(default=0, ge=0)
    """Stop after this many steps. 0: never."""
    step_minutes: float = Field(default=2.0, ge=0, le=1440)
    """``tidemill up`` on a CPU makes steps smaller (fewer prompts, samples, then tokens) until one is predicted to take at most so long on this
    machine. 0: steps are as large as set."""
    publish_every: int = Field(default=0, ge=0)
    """Steps between published adapters; the one after ``max_steps`` is always published. 0: by size, every step up to 128 MiB and as many times fewer
    as an adapter is larger, but at least every 20th."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints, which hold the adapter and twice its size of optimizer. 0: as often as adapters are published by size."""
    checkpoints_kept: int = Field(default=2, ge=1, le=1000)
    """Newest checkpoints that are kept."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between evaluations on held-out prompts: one answer to each, drawn from the same seed, scored by the current reward model; also before
    the first step. 0: none, and no prompt is held out."""
    evaluation_prompts: int = Field(default=16, ge=1)
    """Most prompts of an evaluation."""
    held_out_ratio: float = Field(default=0.1, gt=0, lt=1)
    """With ``evaluate_every``, part of the prompts that are held out, by a hash of what was asked: they are never trained on."""
    steps_without_labels: int = Field(default=0, ge=0)
    """Most steps without a label on an answer of a recent version; then the learner waits for one. It keeps the learner from following the reward
    model further than people have judged. 0: no bound."""
    recent_version_steps: int = Field(default=4, ge=0)
    """With ``steps_without_labels``, a version counts as recent up to so many steps behind the newest."""
    probes: int = Field(default=4, ge=1, le=64)
    """Probe answers stored with an adapter, by which a replica proves that it serves it (attestation). An adapter that differs little from the base
    gets up to four times as many."""

    def publishes(self, step: int, adapter_bytes: int) -> bool:
        """Whether the adapter of this step is published."""
        return step % (self.publish_every or self.by_size(adapter_bytes)) == 0 or step == self.max_steps

    def saves(self, step: int, adapter_bytes: int) -> bool:
        """Whether a checkpoint of this step is written."""
        return step % (self.checkpoint_every or self.by_size(adapter_bytes)) == 0 or step == self.max_steps

    def by_size(self, adapter_bytes: int) -> int:
        """Steps between two adapters of this size."""
        return steps_by_size(adapter_bytes)

    @model_validator(mode="after")
    def _waits_for_no_more_than_it_keeps(self) -> Self:
        if self.prompts_needed > self.prompts_kept:
            raise ValueError(f"learner.prompts_needed = {self.prompts_needed} exceeds learner.prompts_kept = {self.prompts_kept}")
        return self
