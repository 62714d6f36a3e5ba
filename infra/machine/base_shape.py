"""The sizes of a base, which decide how fast it computes: from its ``config.json`` or, for a named base, known beforehand."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.settings.policy_settings import PolicySettings
from streams.core.errors import ConfigError


class BaseShape(BaseModel):
    """A decoder's sizes, the same in every layer. A dense model counts as one expert for all tokens."""

    model_config = ConfigDict(frozen=True)

    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    """Intermediate size of one expert."""
    experts: int = Field(ge=1)
    experts_per_token: int = Field(ge=1)
    heads: int = Field(ge=1)
    key_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    vocabulary: int = Field(ge=1)

    @property
    def layer_weights(self) -> int:
        """Parameters of one layer, all experts included."""
        attention = self.hidden * self.head_size * 2 * (self.heads + self.key_heads)
        return attention + 3 * self.experts * self.hidden * self.intermediate

    @property
    def weights(self) -> int:
        """Parameters of the whole base; tied embeddings count once."""
        return self.layers * self.layer_weights + self.vocabulary * self.hidden


SMOLLM2 = BaseShape(layers=30, hidden=576, intermediate=1536, experts=4, experts_per_token=2, heads=9, key_heads=3, head_size=64, vocabulary=49152)
TINY = BaseShape(layers=2, hidden=64, intermediate=128, experts=4, experts_per_token=2, heads=4, key_heads=2, head_size=32, vocabulary=49152)
MADE_HERE = {"smollm2": SMOLLM2, "tiny": TINY}


def shape_of(policy: PolicySettings) -> BaseShape:
    """The shape of the base that the settings name; a named base need not exist yet. Raises ConfigError for a folder without ``config.json``."""
    if isinstance(policy.base, Path):
        return shape_in(policy.base)
    return MADE_HERE[policy.base].model_copy(update={"experts": policy.experts, "experts_per_token": policy.experts_per_token})


def shape_in(folder: Path) -> BaseShape:
    """The shape from a folder's ``config.json``. Raises ConfigError."""
    return BaseShape(**sizes_of(config_in(folder), folder))


def config_in(folder: Path) -> dict[str, Any]:
    """What a folder's ``config.json`` says of its language model, with transformers' names. Raises ConfigError."""
    try:
        whole = json.loads((folder / "config.json").read_text())
        config: dict[str, Any] = whole.get("text_config", whole)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"policy.base = {folder} has no readable config.json: {error}") from None
    return config


def sizes_of(config: dict[str, Any], folder: Path = Path()) -> dict[str, int]:
    """The fields of a ``BaseShape``. Raises ConfigError that names what is missing."""
    try:
        heads = config["num_attention_heads"]
        return {
            "layers": config["num_hidden_layers"],
            "hidden": config["hidden_size"],
            "intermediate": config.get("moe_intermediate_size") or config["intermediate_size"],
            "experts": first_of(config, ("num_local_experts", "num_experts", "n_routed_experts"), 1),
            "experts_per_token": first_of(config, ("num_experts_per_tok", "top_k_experts"), 1),
            "heads": heads,
            "key_heads": config.get("num_key_value_heads") or heads,
            "head_size": config.get("head_dim") or config["hidden_size"] // heads,
            "vocabulary": config["vocab_size"],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder / 'config.json'} lacks a size of a decoder: {error!r}") from None


def first_of(config: dict[str, Any], names: tuple[str, ...], otherwise: int) -> int:
    """The first of these entries that is there and not 0."""
    return next((int(config[name]) for name in names if config.get(name)), otherwise)
