"""A base's folder as its files describe it, before anything is loaded: what it is, and in one sentence why it cannot be used.

Reads ``config.json``, the headers of the safetensors files and the names beside them; no weights, no torch.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from reward.families.known_families import family_of
from reward.families.model_family import ModelFamily
from streams.core.errors import ConfigError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
HEADS = ("lm_head.weight", "model.embed_tokens.weight")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
LARGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class BaseFolder:
    """What a folder says of its model."""

    folder: Path
    model_type: str
    config: dict[str, Any]
    """``config.json``; of a model with several parts, that of its text."""
    parameters: int
    """Numbers in all weights."""
    weights_bytes: int
    head_rows: int
    """Tokens that the output head knows."""
    names: frozenset[str] = frozenset()
    """Names of all weights on disk."""

    @property
    def family(self) -> ModelFamily | None:
        """None when the architecture is not known."""
        return family_of(self.model_type)

    def check_tokens(self, highest_id: int) -> None:
        """Raises ConfigError when the tokenizer has a token that the model has not."""
        if highest_id >= self.head_rows:
            raise ConfigError(
                f"{self.folder}: the tokenizer's highest token is {highest_id}, but the model knows {self.head_rows} tokens "
                f"(0 to {self.head_rows - 1}): give it its own tokenizer, or resize its embeddings (transformers: resize_token_embeddings) "
                "and save both"
            )

    def check_memory(self, bytes_per_parameter: int, setting: str, limit: int | None = None) -> None:
        """Raises ConfigError when the weights alone are larger than this machine's memory (``limit``; in bytes)."""
        needed, there = self.parameters * bytes_per_parameter, memory_limit() if limit is None else limit
        if needed > there:
            raise ConfigError(
                f"{self.folder}: its {self.parameters / 1e9:.1f} billion parameters need {needed / 2**30:.1f} GiB at {bytes_per_parameter} bytes "
                f"each ({setting}), this machine has {there / 2**30:.1f} GiB: use a smaller base or a larger machine"
            )


def read_config(folder: Path, setting: str = "policy.base") -> dict[str, Any]:
    """``config.json`` of a folder. Raises ConfigError."""
    if not folder.is_dir():
        raise ConfigError(f"{setting} = {folder}: there is no such folder")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except OSError:
        hint = _instead_of_config(folder)
        raise ConfigError(f"{setting} = {folder} has no config.json{hint}: it must hold a model as transformers saves it") from None
    except ValueError as error:
        raise ConfigError(f"{setting} = {folder}: config.json cannot be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{setting} = {folder}: config.json names no model_type: it must be that of a model which transformers knows")
    return config


def read_base(folder: Path, setting: str = "policy.base") -> BaseFolder:
    """The folder's model, which may be of an unknown family. Raises ConfigError for what no part could load: without weights in safetensors, or
    without tokenizer."""
    config = read_config(folder, setting)
    shapes = _shapes(folder, setting)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ConfigError(
            f"{setting} = {folder} has no tokenizer (none of {', '.join(TOKENIZERS)}): copy the tokenizer files of the model that it was made from"
        )
    sizes = config.get("text_config") or config
    head = next((shapes[name][0] for name in HEADS if shapes.get(name)), int(sizes.get("vocab_size") or 0))
    return BaseFolder(
        folder, config["model_type"], sizes, sum(math.prod(shape) for shape in shapes.values()),
        sum(path.stat().st_size for path in folder.glob("*.safetensors")), head, frozenset(shapes),
    )  # fmt: skip


def family_in(folder: Path) -> ModelFamily | None:
    """The family of a folder's model; None when it is not known, or nothing can be read."""
    try:
        return family_of(read_config(folder)["model_type"])
    except ConfigError:
        return None


def highest_token(folder: Path) -> int | None:
    """The highest token id in ``tokenizer.json``; None without that file."""
    try:
        whole = json.loads((folder / "tokenizer.json").read_bytes())
        vocabulary = whole["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return max([*ids, *(token["id"] for token in whole.get("added_tokens") or ())], default=None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return total


def _shapes(folder: Path, setting: str) -> dict[str, list[int]]:
    """Shapes of all weights by name, from the headers."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{setting} = {folder} has no weights in safetensors{_instead_of_weights(folder)}")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            wanted = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{setting} = {folder}: {index.name} cannot be read: {error!r}") from None
        if missing := sorted(wanted - {path.name for path in files}):
            raise ConfigError(f"{setting} = {folder}: {len(missing)} of {len(wanted)} weight files are missing ({missing[0]} …): fetch them again")
    shapes: dict[str, list[int]] = {}
    for path in files:
        shapes |= {name: list(tensor["shape"]) for name, tensor in _header(path, setting).items() if name != "__metadata__"}
    return shapes


def _header(path: Path, setting: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
            end = max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0)
            if path.stat().st_size < 8 + length + end:
                raise ValueError(f"it ends {8 + length + end - path.stat().st_size} bytes too early")
            return header
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ConfigError(f"{setting} = {path.parent}: {path.name} cannot be read ({error}): fetch it again") from None


def _instead_of_weights(folder: Path) -> str:
    if found := sorted(folder.glob("*.gguf")):
        return (
            f" but {found[0].name}: convert it once with transformers, AutoModelForCausalLM.from_pretrained(folder, gguf_file={found[0].name!r})"
            ".save_pretrained(out), and its tokenizer likewise"
        )
    if found := sorted(path for pattern in PICKLED for path in folder.glob(pattern)):
        return (
            f" but {found[0].name}, a pickle that could run any program, so nothing here opens it: convert it on a machine apart with "
            "transformers (from_pretrained, save_pretrained) if you trust its source"
        )
    return ""


def _instead_of_config(folder: Path) -> str:
    found = sorted(folder.glob("*.gguf"))
    if found:
        return f" but {found[0].name}; convert it once with transformers (from_pretrained with gguf_file, save_pretrained)"
    return " but an adapter's adapter_config.json: name its base" if (folder / "adapter_config.json").is_file() else ""
