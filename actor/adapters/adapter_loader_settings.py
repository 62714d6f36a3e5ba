"""Settings of the adapter loader: how often it looks for new adapters, and how long one may take to load."""

from pydantic import Field

from streams.core.settings_section import SettingsSection


class AdapterLoaderSettings(SettingsSection):
    """Loading adapters: how often to look for new ones, how long one may take, when to stop trying."""

    poll_s: float = Field(default=0.5, gt=0, le=60)
    """Seconds between two reads of the adapters topic."""
    load_timeout_s: float = Field(default=120.0, gt=0, le=3600)
    """An adapter that takes longer to load or to answer its probes is refused."""
    refusals_before_waiting: int = Field(default=3, ge=1, le=100)
    """When the newest adapter is refused, older ones are tried, newest first. After this many refusals the replica keeps serving what it serves."""
