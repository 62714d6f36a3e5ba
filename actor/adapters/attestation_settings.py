"""Settings of attestation: how closely a replica must agree with the learner before an adapter serves traffic."""

from pydantic import Field

from streams.core.settings_section import SettingsSection


class AttestationSettings(SettingsSection):
    """Attestation: how closely this replica must agree with the learner on an adapter's probes."""

    max_learner_gap_nats: float = Field(default=0.15, gt=0, le=10)
    """Largest mean difference per token between this replica's and the learner's log-probabilities on the probes, of adapter and base."""
    min_adapter_share: float = Field(default=0.6, gt=0.5, lt=1)
    """Share of the learner's step from base to adapter that this replica must show, for the whole step and for each part of it: 0 is the base, 0.5
    half of the adapter, 1 the adapter. The whole interval of the share must lie between this and 2 minus this."""
