"""Settings of the fit: the ensemble of heads, its regularisation, calibration, and the labels that it is fitted on."""

from pydantic import Field

from streams.core.settings_section import SettingsSection


class HeadFitSettings(SettingsSection):
    """The fit: ensemble, regularisation, calibration, replay buffer."""

    heads: int = Field(default=8, ge=2, le=64)
    """Linear heads of the ensemble, each fitted with its own bootstrap weights."""
    folds: int = Field(default=5, ge=2, le=20)
    """Folds of the cross-fit: for each fold one more head is fitted without it. Figures about unseen labels come from these heads."""
    l2: float = Field(default=3.0, gt=0, le=1000)
    """L2 regularisation of a head's weights, in labels' worth."""
    l2_in_doubt: float = Field(default=100.0, gt=0, le=100_000)
    """L2 regularisation while the labels' marginal likelihood asks for a stronger one than ``l2`` (many labels that agree on little). At ``l2`` or
    below: never used."""
    lower_bound_stds: float = Field(default=0.5, ge=0, le=10)
    """The reward is the ensemble's mean minus this many standard deviations."""
    calibration_half_life_labels: float = Field(default=1000.0, gt=0, le=1e6)
    """Half-life of calibration: a label that is this many labels older than the newest counts half. When the share of good answers changes, labels
    from before the change no longer count, whatever this is."""
    buffer_labels: int = Field(default=1000, ge=10, le=1_000_000)
    """People's labels in the replay buffer: the newest, half good and half bad where there are enough of both. It keeps half as many labels from
    signals alone."""
