"""Settings of ``tidemill prune``."""

from pydantic import Field

from streams.core.settings_section import SettingsSection


class PruneSettings(SettingsSection):
    """How many unused artifacts ``tidemill prune`` keeps. The lake and the topics have retention settings of their own."""

    keep_adapters: int = Field(default=20, ge=2, le=100_000)
    """Newest adapters to keep. Production, rollback targets, candidates and adapters that a replica serves are kept in any case."""
    keep_productions: int = Field(default=10, ge=1, le=100_000)
    """Newest earlier productions to keep as rollback targets; those that were found bad do not count."""
    keep_reward_models: int = Field(default=50, ge=2, le=100_000)
    """Newest reward models to keep. Those that kept adapters were made with are kept in any case."""
