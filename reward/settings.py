"""All settings of the reward model (``reward.*``). Each topic's are in a ``*_settings.py`` beside the code that they steer."""

from typing import Self

from pydantic import model_validator

from reward.features.feature_settings import FeatureSettings
from reward.fit.head_fit_settings import HeadFitSettings
from reward.trust.vote_settings import VoteSettings
from reward.updater.updater_settings import UpdaterSettings


class RewardSettings(FeatureSettings, HeadFitSettings, VoteSettings, UpdaterSettings):
    """The streaming reward model: frozen backbone, ensemble of heads, replay buffer."""

    @model_validator(mode="after")
    def _other_kinds_name_their_folder(self) -> Self:
        if self.backbone_kind != "language_model" and self.backbone is None:
            raise ValueError(
                f"reward.backbone_kind = {self.backbone_kind} needs reward.backbone, the folder of that model: the policy's base is a language model"
            )
        return self

    @model_validator(mode="after")
    def _first_version_fits_the_buffer(self) -> Self:
        if self.min_labels > self.buffer_labels:
            raise ValueError(f"reward.min_labels = {self.min_labels} never fits into reward.buffer_labels = {self.buffer_labels}")
        if 2 * self.min_each_verdict > self.buffer_labels:
            raise ValueError(f"reward.min_each_verdict = {self.min_each_verdict} of each verdict never fit into reward.buffer_labels")
        return self
