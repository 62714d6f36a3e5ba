"""Settings of the simulated people."""

from typing import Literal

from pydantic import Field

from streams.core.settings_section import SettingsSection


class PeopleSettings(SettingsSection):
    """Simulated people, for the demo and for tests."""

    preference: Literal["to-the-point", "speaks-to-me", "says-e"] = "to-the-point"
    """What the people truly like; ``tidemill simulate --preferences`` describes each in words."""
    people: int = Field(default=50, ge=1, le=100_000)
    """Number of different people."""
    at_once: int = Field(default=8, ge=1, le=1000)
    """People who talk at the same time."""
    round_every_s: float = Field(default=0.0, ge=0, le=3600)
    """Seconds between rounds once the learner has begun and shares the processor with the actor: ``at_once`` people then ask at the same moment,
    since an engine answers many requests for little more than one. 0: people go on talking without a pause."""
    vote_ratio: float = Field(default=0.8, ge=0, le=1)
    """Part of the answers that get a thumb."""
    noise_ratio: float = Field(default=0.1, ge=0, lt=0.5)
    """Part of the thumbs that say the opposite of what the person truly thinks."""
    delay_s: float = Field(default=2.0, ge=0, le=3600)
    """Mean time between an answer and its thumb; the time is exponentially distributed."""
    answer_tokens: int = Field(default=48, ge=1, le=4096)
    """Longest answer that they ask for."""
    temperature: float = Field(default=0.8, ge=0, le=2)
    """Sampling temperature that they ask for."""
    system: str = "Answer in one short sentence."
    """System message of their application."""
    held_out_questions: int = Field(default=48, ge=4, le=1000)
    """Questions about subjects that are never asked about during learning. Approval is measured on these alone."""
    pairs_at_once: int = Field(default=4, ge=1, le=100)
    """Further such questions that are put to the base and to the served adapter now and then during learning, to see whether approval has risen."""
    pairs_every_s: float = Field(default=40.0, ge=0, le=3600)
    """Seconds between them."""
    examined_at_once: int = Field(default=16, ge=1, le=1000)
    """Such questions that wait for their answers at the same time."""
    seed: int = 0
    """Seed of everything random in what the people ask and how they vote."""
