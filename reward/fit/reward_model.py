"""The reward model: standardisation, an ensemble of linear heads, a temperature and an offset. It gives a score and its uncertainty.

Shapes: ``N`` pairs, ``D`` features, ``K`` bootstrap heads, ``F`` fold heads. Fold head ``f`` has never seen a label of fold ``f``, in this version or
any other (``fold_of`` gives an opening the same fold for ever). All figures about unseen labels come from fold heads.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from streams.core.errors import BadArtifact

WEIGHTS, ABOUT = "head.safetensors", "head.json"
FORMAT = 1
CLIP = 6.0
"""Standardised features are clipped here: one unusual answer must not outweigh all others."""
_TENSORS = ("centre_D", "spread_D", "gain_D", "heads_KD", "head_bias_K", "folds_FD", "fold_bias_F")


@dataclass(frozen=True)
class Scores:
    """Probabilities that people would call each of ``N`` answers good. Float32 ``[N]`` each."""

    mean_N: Tensor
    std_N: Tensor
    """Disagreement of the ensemble."""
    lower_N: Tensor
    """Lower confidence bound: the reward."""


@dataclass(frozen=True)
class RewardModel:
    """An ensemble of linear heads over standardised features. Immutable; equal content has equal ``checksum()``."""

    features: str
    """Fingerprint of the features that it was fitted on. It must not score others."""
    temperature: float
    """Logits are divided by it. Fitted so that the probabilities agree with unseen labels."""
    offset: float
    """Added after that. It changes calibration, not the ranking."""
    lower_bound_stds: float
    centre_D: Tensor
    spread_D: Tensor
    gain_D: Tensor
    heads_KD: Tensor
    head_bias_K: Tensor
    folds_FD: Tensor
    fold_bias_F: Tensor

    def score(self, features_ND: Tensor) -> Scores:
        """Score pairs by their features, float32 ``[N, D]``."""
        logits_NK = self.standardise(features_ND) @ self.heads_KD.T + self.head_bias_K
        chances_NK = torch.sigmoid(logits_NK / self.temperature + self.offset)
        mean_N, std_N = chances_NK.mean(1), chances_NK.std(1)
        return Scores(mean_N, std_N, (mean_N - self.lower_bound_stds * std_N).clamp(0, 1))

    def unseen(self, features_ND: Tensor, folds_N: Tensor) -> Tensor:
        """Probability ``[N]`` by the fold head that has never seen a label of the pair's fold (int64 ``[N]``)."""
        logits_NF = self.standardise(features_ND) @ self.folds_FD.T + self.fold_bias_F
        return torch.sigmoid(logits_NF.gather(1, folds_N[:, None]).squeeze(1) / self.temperature + self.offset)

    def standardise(self, features_ND: Tensor) -> Tensor:
        """Features as the heads use them: centred, scaled, clipped, each block with its gain."""
        return ((features_ND - self.centre_D) / self.spread_D).clamp(-CLIP, CLIP) * self.gain_D

    def checksum(self) -> str:
        """Hex SHA-256 over everything that decides a score."""
        digest = hashlib.sha256(json.dumps(self._about(), sort_keys=True).encode())
        for name in _TENSORS:
            digest.update(getattr(self, name).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> Path:
        """Write ``head.safetensors`` and ``head.json``; equal models give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({name: getattr(self, name).contiguous() for name in _TENSORS}, folder / WEIGHTS)
        (folder / ABOUT).write_text(json.dumps(self._about(), sort_keys=True, indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: Path) -> "RewardModel":
        """Read what ``save`` wrote. Raises BadArtifact when it is anything else."""
        try:
            about: dict[str, Any] = json.loads((folder / ABOUT).read_text())
            tensors: dict[str, Tensor] = safetensors.torch.load_file(folder / WEIGHTS)
        except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
            raise BadArtifact(f"{folder} holds no reward model: {error}") from None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise BadArtifact(f"{folder / ABOUT}: only format {FORMAT} can be read")
        try:
            model = cls(str(about["features"]), float(about["temperature"]), float(about["offset"]), float(about["lower_bound_stds"]), **tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise BadArtifact(f"{folder} is incomplete: {error}") from None
        model._check(folder)
        return model

    def _about(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "features": self.features,
            "temperature": self.temperature,
            "offset": self.offset,
            "lower_bound_stds": self.lower_bound_stds,
            "dimensions": int(self.heads_KD.shape[1]),
            "heads": int(self.heads_KD.shape[0]),
            "folds": int(self.folds_FD.shape[0]),
        }

    def _check(self, folder: Path) -> None:
        dimensions, heads, folds = self.centre_D.shape[-1], self.head_bias_K.shape[-1], self.fold_bias_F.shape[-1]
        wanted = [(dimensions,)] * 3 + [(heads, dimensions), (heads,), (folds, dimensions), (folds,)]
        for name, shape in zip(_TENSORS, wanted, strict=True):
            tensor = getattr(self, name)
            if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape or not bool(torch.isfinite(tensor).all()):
                raise BadArtifact(f"{folder}: {name} must be finite float32 of shape {shape}, is {tensor.dtype} {tuple(tensor.shape)}")
        if not 0 < self.temperature < float("inf") or not math.isfinite(self.offset) or not bool((self.spread_D > 0).all()):
            raise BadArtifact(f"{folder}: temperature and spread must be positive, and the offset finite")


def fold_of(key: str, folds: int) -> int:
    """The fold of an opening (``BufferEntry.fold_key``), from a hash of it; it never changes."""
    return int.from_bytes(hashlib.sha256(b"fold " + key.encode()).digest()[:8], "big") % folds
