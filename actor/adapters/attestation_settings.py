"""Settings of attestation: how closely a replica must agree with the learner before an adapter serves traffic."""

from pydantic import Field

from streams.core.settings_section import SettingsSection


class AttestationSettings(SettingsSection):
    """Attestation: how closely this replica must agree with the learner on an adapter's probes."""

    max_learner_gap_nats: float = Field(default=0.15, gt=0, le=10)
    """Largest mean difference per token between this replica's and the learner's log-probabilities on the probes."""
    noise_nats: float = Field(default=0.02, gt=0, le=1)
    """An adapter that changed the learner's own log-probabilities by less than this (root mean square per token) cannot be told from the base."""
    min_adapter_share: float = Field(default=0.6, gt=0, lt=1)
    """Part of the learner's step from base to adapter that this replica must show: the base shows 0, the adapter 1."""
