"""Settings of the objectives that learn directly from people's thumbs and words."""

from typing import Literal, Self

from pydantic import Field, model_validator

from streams.core.settings_section import SettingsSection


class FeedbackObjectiveSettings(SettingsSection):
    """Learning directly from people's thumbs, comments and corrections, beside the reward model."""

    thumb_weight: float = Field(default=0.0, ge=0)
    """Weight of live answers with their labels (KTO, learner/objectives/thumb_objective.py). 0: off."""
    hindsight_weight: float = Field(default=0.0, ge=0)
    """Weight of comments and corrections: the policy with the comment in its prompt teaches the policy without it
    (learner/objectives/hindsight_objective.py). 0: off."""
    hindsight_on: Literal["answer", "rewritten"] = "rewritten"
    """Tokens on which a comment teaches: ``answer``, those of the original answer; ``rewritten``, those of new answers that the policy samples with
    the comment in its prompt. A correction always teaches on its own tokens."""
    hindsight_samples: int = Field(default=2, ge=1)
    """Answers sampled for each comment when ``hindsight_on`` is ``rewritten``."""
    hindsight_replies: bool = False
    """Learn from a person's next turn too, for answers without a comment or correction. It teaches on the tokens of the original answer. Such turns
    are many and come without asking; most of them say little about the answer before."""
    hindsight_teacher: Literal["policy", "base"] = "policy"
    """The teacher: the current policy, or the base, which training does not change. Choose ``base`` when words are the only thing that is
    learned from."""
    judged_per_step: int = Field(default=8, ge=1)
    """Live answers with labels in a step. Where possible, half of them come with words."""
    judged_kept: int = Field(default=256, ge=1)
    """Most recently labelled live answers to draw from."""
    judged_tokens: int = Field(default=256, ge=1)
    """A live answer or a correction is truncated at this length."""
    kto_beta: float = Field(default=0.1, gt=0)
    """KTO's beta: how fast the loss levels off as a live answer becomes likelier than under the base."""

    @property
    def learns_from_labels(self) -> bool:
        """True when the learner reads labels, to learn from what people said about live answers."""
        return bool(self.thumb_weight or self.hindsight_weight)

    @model_validator(mode="after")
    def _replies_teach_by_hindsight(self) -> Self:
        if self.hindsight_replies and not self.hindsight_weight:
            raise ValueError("learner.hindsight_replies has no effect while learner.hindsight_weight is 0")
        return self
