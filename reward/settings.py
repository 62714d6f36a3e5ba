"""Settings of the reward model: what it looks at, how it is fitted, when it is published."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from streams.core.settings_section import SettingsSection


class RewardSettings(SettingsSection):
    """The streaming reward model: frozen backbone, ensemble head, replay buffer."""

    backbone: Path | None = None
    """Folder of the model that the features are taken from (``tidemill reward tune`` writes one). None: the policy's own dense base.
    Another one means other features: all labels are read again."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the frozen backbone; features come out in float32 either way."""
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """Where the backbone runs."""
    threads: int = Field(default=1, ge=1, le=256)
    """Processor threads of the updater. On a machine shared with learner and actor more than one costs more in waiting than it gains."""
    max_prompt_tokens: int = Field(default=256, ge=8, le=100_000)
    """Of a longer prompt, the last tokens are looked at."""
    max_answer_tokens: int = Field(default=384, ge=8, le=100_000)
    """Of a longer answer, the first tokens are looked at."""
    feature_cache_pairs: int = Field(default=4096, ge=0, le=1_000_000)
    """Features kept in memory, by content, the least recently used given up first (about 4 kB each)."""
    mean_layer_ratio: float = Field(default=0.27, gt=0, le=1)
    """Depth of the layer whose mean over the answer is taken, as a share of the backbone's layers."""
    last_layer_ratio: float = Field(default=0.67, gt=0, le=1)
    """Depth of the layer whose state at the answer's end is taken; layers beyond the deeper of the two are not run."""

    heads: int = Field(default=8, ge=2, le=64)
    """Linear heads of the ensemble, each fitted under its own bootstrap weights."""
    folds: int = Field(default=5, ge=2, le=20)
    """Parts of the labels, each left out by one further head: what is said of unseen labels comes from these."""
    l2: float = Field(default=3.0, gt=0, le=1000)
    """Strength of the pull of a head's weights to zero, in labels' worth."""
    l2_in_doubt: float = Field(default=100.0, gt=0, le=100_000)
    """The same while the labels' evidence asks for a stronger pull than ``l2``: many labels that agree on little. At ``l2`` or below: never."""
    lower_bound_stds: float = Field(default=0.5, ge=0, le=10)
    """The reward is the mean less so many standard deviations of the ensemble."""

    calibration_half_life_labels: float = Field(default=50.0, gt=0, le=1e6)
    """Calibration follows the newest labels: one so many labels older counts half. The policy changes, and with it the share of good answers.
    While ``l2_in_doubt`` holds, ten times as many."""
    person_share: float = Field(default=0.2, gt=0, le=1)
    """No person holds more of the labels' weight than this share, nor of that of comparisons and corrections; so with the three below."""
    tenant_share: float = Field(default=0.5, gt=0, le=1)
    """Nor any tenant more than this, where there are several."""
    hour_share: float = Field(default=0.5, gt=0, le=1)
    """Nor the labels of one tenant within one hour, where there are others: a burst must not outshout a week."""
    newcomer_labels: int = Field(default=1, ge=1, le=1000)
    """A person's labels count fully once there are so many of theirs, fewer in proportion. Raise it where accounts cost nothing."""
    weigh_reliability: bool = False
    """Whether people whose verdicts contradict what others taught the model count less (a second, smaller fit at each refit)."""
    smooth_by_reliability: bool = False
    """Whether the targets of people who contradict what others taught the model more than is usual are smoothed towards 0.5 (the same second fit)."""
    propensity_file: Path | None = None
    """What ``tidemill reward propensity`` wrote: people's verdicts then count by the inverse of how likely such a vote was. None: all the same."""

    buffer_labels: int = Field(default=1000, ge=10, le=1_000_000)
    """Labels of people kept for refitting: the newest, half good and half bad where there are enough of both; and half as many of signals alone."""
    min_labels: int = Field(default=16, ge=4, le=100_000)
    """No version is published before there are so many labels with a verdict."""
    min_each_verdict: int = Field(default=3, ge=1, le=10_000)
    """Nor before there are so many good and so many bad ones."""
    batch_labels: int = Field(default=128, ge=1, le=10_000)
    """Labels taken in before a refit, at most."""
    batch_within_s: float = Field(default=0.05, gt=0, le=60)
    """How long labels are gathered before a refit. Those that come during one wait for its end, and are gathered by that."""
    publish_window_labels: int = Field(default=200, ge=10, le=100_000)
    """The newest labels, on which a new version must be no worse than the one published last."""
    publish_tolerance_se: float = Field(default=1.0, ge=0, le=10)
    """A version counts as worse when its log loss is higher by more than so many standard errors of the difference."""
    drift_hold_labels: int = Field(default=50, ge=0, le=100_000)
    """While the drift alarm stands the last version stays, until so many labels have come since the change; 0: never."""
    validation_window_labels: int = Field(default=200, ge=10, le=100_000)
    """The newest labels over which test-then-train accuracy and calibration are told."""
    web_port: int = Field(default=0, ge=0, le=65535)
    """Port of Faust's own web pages on the loopback interface; 0 turns them off."""

    @model_validator(mode="after")
    def _first_version_fits_the_buffer(self) -> Self:
        if self.min_labels > self.buffer_labels:
            raise ValueError(f"reward.min_labels = {self.min_labels} never fits into reward.buffer_labels = {self.buffer_labels}")
        if 2 * self.min_each_verdict > self.buffer_labels:
            raise ValueError(f"reward.min_each_verdict = {self.min_each_verdict} of each verdict never fit into reward.buffer_labels")
        return self

    def backbone_of(self, base: Path) -> Path:
        """The folder that ``backbone`` names; where it names none, the dense model of the policy's base."""
        return self.backbone or base / "dense"
