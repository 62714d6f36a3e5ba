"""Settings of the gates: what a candidate must show before people see it, and in shadow."""

from pathlib import Path

from pydantic import Field

from streams.core.settings_section import SettingsSection


class PromotionGateSettings(SettingsSection):
    """Gates: what a candidate must show before people see it, and in shadow."""

    prompts: int = Field(default=128, ge=1, le=100_000)
    """Recent prompts on which candidate and production are compared before people see the candidate."""
    shadow_prompts: int = Field(default=64, ge=0, le=100_000)
    """Prompts that arrive during shadow and that the candidate answers too, unseen by people. 0: the candidate answers none."""
    max_shadow_h: float = Field(default=24.0, gt=0, le=10_000)
    """A candidate is rejected when it has had fewer prompts than that after this many hours in shadow."""
    prompts_kept: int = Field(default=2000, ge=1, le=10_000_000)
    """Recent episodes of the policy kept in memory to choose prompts from."""
    seed: int = 0
    """Seed of the choice of prompts and of bootstraps."""
    min_win_rate: float = Field(default=0.5, ge=0, le=1)
    """The reward model must prefer the candidate's answer on more than this part of the prompts, by the lower end of the interval."""
    min_shadow_win_rate: float = Field(default=0.4, ge=0, le=1)
    """The same in shadow, by the lower end of the interval too. There it is a safety check, not a proof, so it asks for less."""
    max_retention_drop: float = Field(default=0.1, ge=0, le=1)
    """Largest part of the retention probes (fixed questions that the base answers correctly) that the candidate may get wrong."""
    retention_file: Path | None = None
    """JSON lines of ``{"prompt": …, "expects": [regular expressions, one of which must match]}``. None: the probes that come with Tidemill."""
    max_kl_nats: float = Field(default=1.0, gt=0, le=100)
    """Largest KL to the base, in nats per token, by the upper end of its interval over ``kl_prompts`` answers."""
    kl_prompts: int = Field(default=32, ge=16, le=100_000)
    """Recent prompts on which the KL is measured: the candidate answers each at temperature 1, and candidate and base are asked for the
    log-probabilities of its tokens. With fewer than 16 measured prompts the gate has no power and does not pass."""
    max_length_ratio: float = Field(default=2.0, gt=1, le=100)
    """The candidate's median answer may be at most this many times as long, or as short, as production's."""
    max_refusal_rise: float = Field(default=0.1, ge=0, le=1)
    """Largest rise in the part of the answers that decline, against production."""
    min_familiar_words: float = Field(default=0.2, ge=0, le=1)
    """Smallest part of the words in the candidate's answers that also occur in production's or the base's answers to the same prompts. Answers in
    another language share almost none."""
    max_ece: float = Field(default=0.2, ge=0, le=1)
    """Largest expected calibration error of the reward model on labels that it had not seen."""
    min_auc: float = Field(default=0.6, ge=0, le=1)
    """Smallest AUC of the reward model on labels that it had not seen: how often it scored a good answer above a bad one."""
    min_reward_labels: int = Field(default=50, ge=1, le=10_000_000)
    """Unseen labels that these two figures must rest on."""
    min_replicas: int = Field(default=1, ge=1, le=10_000)
    """Replicas that must have attested the candidate."""
    replica_memory_h: float = Field(default=1.0, ge=0.5, le=10_000)
    """Every replica heard from within this many hours must have attested the candidate. A replica repeats its attestations every ten minutes."""
    attest_timeout_s: float = Field(default=900.0, gt=0, le=86_400)
    """How long it may take until all of them have attested a candidate."""
    commands: tuple[tuple[str, ...], ...] = ()
    """Your own evaluations, each a program with its arguments; exit status 0 passes. They run without a shell. The environment variables
    TIDEMILL_CANDIDATE, TIDEMILL_PRODUCTION and TIDEMILL_BASE_URL name what to compare."""
    command_timeout_s: float = Field(default=1800.0, gt=0, le=86_400)
    """A command that runs longer is stopped and has failed."""
