"""Settings of trust: how much any one person, tenant or hour may count."""

from pathlib import Path

from pydantic import Field

from streams.core.settings_section import SettingsSection


class VoteSettings(SettingsSection):
    """Trust in votes: caps on persons, tenants and hours, and people's reliability."""

    person_share: float = Field(default=0.2, gt=0, le=1)
    """Largest share of the total weight of labels that one person may hold; the same for the weight of comparisons and corrections. The next three
    settings apply to both too."""
    tenant_share: float = Field(default=0.5, gt=0, le=1)
    """Largest share of one tenant, where there are several."""
    hour_share: float = Field(default=0.5, gt=0, le=1)
    """Largest share of one tenant's labels within one hour, where there are others: a burst must not outweigh a week."""
    newcomer_labels: int = Field(default=1, ge=1, le=1000)
    """Labels after which a person's labels count fully; with fewer they count in proportion. Raise it where an account costs nothing (sock
    puppets)."""
    weigh_reliability: bool = False
    """Give less weight to people whose verdicts contradict what the model learned from others (a second, smaller fit at each refit)."""
    smooth_by_reliability: bool = False
    """Smooth targets towards 0.5 for people who contradict more than is usual what the model learned from others (the same second fit)."""
    propensity_file: Path | None = None
    """File written by ``tidemill reward propensity``: each verdict is then weighted by the inverse of how likely such a vote was. None: all verdicts
    count the same."""
