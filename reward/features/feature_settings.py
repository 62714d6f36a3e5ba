"""Settings of the features: which backbone, where it runs, and which of its layers are used."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from reward.families.base_folder import family_in
from streams.core.settings_section import SettingsSection


class FeatureSettings(SettingsSection):
    """Features: the frozen backbone and what is taken from it."""

    backbone: Path | None = None
    """Folder of the model that the features come from (``tidemill reward tune`` writes one). None: the dense model in the folder ``dense`` of the
    policy's base, or the base itself where that is dense. Another backbone means other features: the updater then reads all labels again."""
    backbone_kind: Literal["language_model", "reward_model", "embedding"] = "language_model"
    """What the folder holds. ``language_model``: its states are features. ``reward_model``: a sequence classifier with one output, as reward models
    are published (its output and the answer's length are the features). ``embedding``: an encoder whose token states are pooled."""
    pooling: Literal["mean", "first", "last"] = "mean"
    """How an ``embedding`` backbone's states become one vector: the mean over tokens, the first token (BERT's CLS) or the last. Its model card says
    which."""
    backbone_batch: int = Field(default=8, ge=1, le=4096)
    """Pairs that run together on a ``reward_model`` or ``embedding`` backbone; on a GPU, more are faster. Batches change the last bits: 1 where
    versions must be rebuilt bit for bit."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the frozen backbone. Features are float32 either way. ``auto``: in a ring on one machine the faster one there, by a short
    measurement at the start; bfloat16 for parts that run apart, since all of them need the same features."""
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """Device of the backbone, to which it is moved once."""
    threads: int = Field(default=1, ge=1, le=256)
    """Processor threads of the updater. On a machine shared with learner and actor, more than one costs more in waiting than it gains."""
    max_prompt_tokens: int = Field(default=256, ge=8, le=100_000)
    """Tokens of the prompt that one pass of the backbone reads. A longer prompt is read in windows of this size."""
    max_answer_tokens: int = Field(default=384, ge=8, le=100_000)
    """Tokens of the answer that one pass of the backbone reads. A longer answer is read in windows of this size."""
    max_windows: int = Field(default=4, ge=1, le=1000)
    """Most windows of a prompt and of an answer, of ``language_model`` backbones; of a longer text the middle is left out. Each costs one more pass.
    1: only the last tokens of a longer prompt and the first of a longer answer are read. Other kinds of backbone read one window."""
    feature_cache_pairs: int = Field(default=4096, ge=0, le=1_000_000)
    """Prompts with answers whose features are kept in memory (about 4 kB each). The least recently used one is dropped first."""
    feature_store_pairs: int = Field(default=20_000, ge=0, le=100_000_000)
    """Prompts with answers whose features the updater keeps in a file (features.sqlite3, by content), so that a restart or reading all labels again
    computes none of them twice. The oldest are dropped first; an erasure empties the file. 0: no file."""
    mean_layer_ratio: float = Field(default=0.27, gt=0, le=1)
    """Depth of the layer whose mean over the answer is used, as a share of the backbone's layers."""
    last_layer_ratio: float = Field(default=0.67, gt=0, le=1)
    """Depth of the layer whose state at the answer's end is used. Layers deeper than both are not run."""

    @property
    def precision(self) -> Literal["bfloat16", "float32"]:
        """The precision: ``auto`` without a measurement is bfloat16."""
        return "bfloat16" if self.dtype == "auto" else self.dtype

    def backbone_of(self, base: Path) -> Path:
        """The folder of ``backbone``; without one, the dense model of the policy's base, or the base itself if it is dense."""
        if self.backbone is not None or (base / "dense").is_dir():
            return self.backbone or base / "dense"
        family = family_in(base)
        return base if family is not None and family.experts is None else base / "dense"
