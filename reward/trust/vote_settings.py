"""Settings of trust: how much any one person, tenant or hour may count."""

from pathlib import Path

from pydantic import Field

from streams.core.settings_section import SettingsSection


class VoteSettings(SettingsSection):
    """Trust in votes: caps on persons, tenants and hours, and people's reliability."""

    person_share: float = Field(default=0.2, gt=0, le=1)
    """Largest share that one person may hold: of the weight of all that people said in a fit, of comparisons and corrections, and of the replay
    buffer. Among fewer people than 1 / ``person_share``: an equal part. Others' labels are never weighed up, so where a few people give nearly all
    labels and trust each other, set it to 1."""
    nameless_weight: float = Field(default=0.25, gt=0, le=1)
    """Weight of a label whose giver gave no name, where others did. Each such label counts as a person's own: the cap on a person cannot see who is
    behind it."""
    tenant_share: float = Field(default=0.5, gt=0, le=1)
    """Largest share of one tenant's labels, where there are several tenants, in parts of what was given. Also among comparisons and corrections, as
    the next two settings."""
    hour_share: float = Field(default=0.5, gt=0, le=1)
    """Largest share of one tenant's labels within one hour, where there are others: a burst must not outweigh a week."""
    newcomer_labels: int = Field(default=1, ge=1, le=1000)
    """Labels after which a person's labels count fully; with fewer they count in proportion. Raise it where an account costs nothing (sock
    puppets)."""
    weigh_reliability: bool = True
    """Give less weight to people whose verdicts contradict what the model learned from others (a second, smaller fit at each refit)."""
    smooth_by_reliability: bool = False
    """Smooth targets towards 0.5 for people who contradict more than is usual what the model learned from others (the same second fit)."""
    propensity_file: Path | None = None
    """File written by ``tidemill reward propensity``: each verdict is then weighted by the inverse of how likely such a vote was. None: all verdicts
    count the same."""
