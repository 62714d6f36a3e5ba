"""Settings of the learner's loop: when it starts and ends, what it draws from, and how often it saves and publishes."""

from typing import Self

from pydantic import Field, model_validator

from streams.core.settings_section import SettingsSection


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
    publish_every: int = Field(default=1, ge=1)
    """Steps between published adapters."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Steps between checkpoints."""
    probes: int = Field(default=4, ge=1, le=64)
    """Probe answers stored with an adapter, by which a replica proves that it serves it (attestation). An adapter that differs little from the base
    gets up to four times as many."""

    @model_validator(mode="after")
    def _waits_for_no_more_than_it_keeps(self) -> Self:
        if self.prompts_needed > self.prompts_kept:
            raise ValueError(f"learner.prompts_needed = {self.prompts_needed} exceeds learner.prompts_kept = {self.prompts_kept}")
        return self
