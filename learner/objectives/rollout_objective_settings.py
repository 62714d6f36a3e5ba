"""Settings of the objective on rollouts: rewards, advantages, the loss, the KL to the base, and off-policy corrections."""

from typing import Literal, Self

from pydantic import Field, model_validator

from streams.core.settings_section import SettingsSection


class RolloutObjectiveSettings(SettingsSection):
    """The objective on rollouts: rewards, advantages, loss, KL to the base, off-policy corrections."""

    rollout_weight: float = Field(default=1.0, ge=0)
    """Weight of rollouts scored by the reward model."""
    cut_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the reward of a rollout that was truncated at ``max_output_tokens``."""
    overlong_tokens: int = Field(default=0, ge=0)
    """Within so many tokens of ``max_output_tokens`` the reward falls linearly, by ``overlong_penalty`` at the limit (DAPO's soft punishment of long
    answers). 0: off."""
    overlong_penalty: float = Field(default=1.0, ge=0)
    """Largest reduction of the reward by ``overlong_tokens``. Scores lie between 0 and 1."""
    empty_reward: float = 0.0
    """Reward of an answer without text; the reward model is not asked."""

    # advantage and loss
    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce_pp", "gae"] = "grpo"
    """How rewards become advantages (learner/objectives/advantages.py): relative to the group, or with ``gae`` relative to a value head's
    prediction at each token (as in PPO)."""
    gae_decay: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation: 1 uses the reward itself, 0 only the next token's value."""
    value_learning_rate: float = Field(default=0.01, gt=0)
    """Learning rate of the value head's AdamW."""
    value_updates: int = Field(default=8, ge=1)
    """Updates of the value head in a step. They are cheap."""
    surrogate: Literal["ppo", "gspo", "cispo"] = "ppo"
    """The loss (learner/objectives/losses.py): ``ppo`` clips ratios of tokens, ``gspo`` clips ratios of sequences, ``cispo`` clips the weights of all
    tokens."""
    normaliser: Literal["tokens", "budget"] = "tokens"
    """What the sum over tokens is divided by: the number of tokens (DAPO), or rollouts x max_output_tokens (Dr. GRPO)."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """Lower bound of the ratio: 1 - clip_low."""
    clip_high: float = Field(default=0.28, ge=0)
    """Upper bound of the ratio: 1 + clip_high. Wider than the lower bound, so that rare tokens can become likelier (DAPO)."""

    # KL to the base
    kl_coefficient: float = Field(default=0.02, ge=0)
    """Weight of the KL to the base. 0 skips the base's forward pass."""
    kl_target_nats: float = Field(default=0.0, ge=0)
    """Target of the KL to the base, in nats per token. The weight starts at ``kl_coefficient``, rises while the KL is above the target and falls
    while it is below. 0: the weight is constant."""
    kl_groups_ratio: float = Field(default=0.25, gt=0, le=1)
    """Part of the groups on which the KL is measured, different ones in each step; the penalty is scaled up to count for all. A full pass of the
    base is a fourth of training."""

    # engine and trainer disagree
    importance: Literal["token", "sequence"] = "token"
    """Correct the difference between engine and trainer for each token or for each answer."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Upper limit of the ratio between trainer and engine (truncated importance sampling)."""
    importance_floor: float = Field(default=0.0, ge=0, le=1)
    """Where the ratio between trainer and engine is below this, the token or answer is left out of training. 0: nothing is left out."""
    importance_ceiling: float = Field(default=0.0, ge=0)
    """Where the ratio is above this, the token or answer is left out of training (``importance_cap`` alone would still use it, with less weight).
    0: nothing is left out."""
    entropy_alarm_nats: float = Field(default=0.05, ge=0)
    """Alarm when the mean entropy per token falls below this: the policy has collapsed and gives the same answer to everything. 0: no alarm."""

    @model_validator(mode="after")
    def _one_advantage_a_sequence(self) -> Self:
        if self.advantage == "gae" and self.surrogate == "gspo":
            raise ValueError(
                "learner.surrogate = gspo has one ratio per sequence and needs one advantage per sequence; learner.advantage = gae has one per token"
            )
        return self

    @model_validator(mode="after")
    def _the_range_holds_one(self) -> Self:
        if 0 < self.importance_ceiling < 1:
            raise ValueError(
                f"learner.importance_ceiling = {self.importance_ceiling} must be 0 or at least 1:"
                " below 1 it would leave out tokens on which engine and trainer agree"
            )
        return self
