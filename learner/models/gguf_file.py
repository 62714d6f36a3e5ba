"""Reads a GGUF file: metadata, and tensors as float32 torch tensors.

It supports only what the packaged base needs. The package ``gguf`` takes four times as long: it reads a vocabulary entry by entry through numpy,
which costs seconds per file. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian).
Shapes: ``N`` blocks of 32 weights.
"""

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streams.core.errors import BadArtifact

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types by number, as ``struct`` format characters."""
STRING, ARRAY = 8, 9
ALIGNMENT = 32
BLOCK = 32


@dataclass(frozen=True)
class TensorPlace:
    """Position and type of a tensor in the file."""

    shape: tuple[int, ...]
    """In torch's order: the fastest dimension last."""
    kind: int
    begin: int


class GgufFile:
    """One file, mapped into memory. ``metadata`` has all keys; ``read`` returns a tensor."""

    def __init__(self, path: Path) -> None:
        """Raises BadArtifact when it is not a GGUF file of version 3."""
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 4
        if self._bytes[:4] != b"GGUF" or (version := self._scalar("I")) != 3:
            raise BadArtifact(f"{path} is not a GGUF file of version 3" + (f" but {version}" if self._bytes[:4] == b"GGUF" else ""))
        tensors, keys = self._scalar("Q"), self._scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        found = {self._string(): self._place() for _ in range(tensors)}
        begin = -(-self._at // ALIGNMENT) * ALIGNMENT
        self._tensors = {name: TensorPlace(place.shape, place.kind, begin + place.begin) for name, place in found.items()}

    @property
    def names(self) -> list[str]:
        """The tensors, in the order of the file."""
        return list(self._tensors)

    def read(self, name: str) -> Tensor:
        """A tensor in float32. Raises BadArtifact for an unsupported quantisation."""
        place = self._tensors[name]
        if place.kind not in KINDS:
            raise BadArtifact(f"GGUF tensor {name} has type {place.kind}; supported are {', '.join(map(str, KINDS))}")
        block_bytes, block_weights, unpack = KINDS[place.kind]
        count = math.prod(place.shape) // block_weights * block_bytes
        raw = torch.frombuffer(bytearray(self._bytes[place.begin : place.begin + count]), dtype=torch.uint8)
        return unpack(raw.view(-1, block_bytes)).reshape(place.shape)

    def _scalar(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self._bytes, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return value

    def _string(self) -> str:
        begin = self._at + 8
        self._at = begin + int(struct.unpack_from("<Q", self._bytes, self._at)[0])
        return self._bytes[begin : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._scalar(SCALARS[kind])
        inner, count = self._scalar("I"), self._scalar("Q")
        if inner in SCALARS:
            values = struct.unpack_from(f"<{count}{SCALARS[inner]}", self._bytes, self._at)
            self._at += struct.calcsize(f"<{count}{SCALARS[inner]}")
            return list(values)
        return [self._value(inner) for _ in range(count)]

    def _place(self) -> TensorPlace:
        dimensions = self._scalar("I")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        return TensorPlace(shape, self._scalar("I"), self._scalar("Q"))


def _float32(raw_NB: Tensor) -> Tensor:
    return raw_NB.view(torch.float32)


def _q4_1(raw_NB: Tensor) -> Tensor:
    """Scale and minimum in float16, then 32 weights of four bits: the low halves of 16 bytes, then the high ones."""
    scale_N1, least_N1 = raw_NB[:, :4].contiguous().view(torch.float16).float().split(1, dim=1)
    packed = raw_NB[:, 4:]
    return torch.cat([packed & 15, packed >> 4], dim=1).float().mul_(scale_N1).add_(least_N1)


def _q8_0(raw_NB: Tensor) -> Tensor:
    """A scale in float16, then 32 weights of eight bits."""
    return raw_NB[:, 2:].contiguous().view(torch.int8).float().mul_(raw_NB[:, :2].contiguous().view(torch.float16).float())


KINDS: dict[int, tuple[int, int, Callable[[Tensor], Tensor]]] = {
    0: (4, 1, _float32),
    3: (4 + BLOCK // 2, BLOCK, _q4_1),
    8: (2 + BLOCK, BLOCK, _q8_0),
}
"""By type number: bytes and weights of a block, and how to unpack blocks ``[N, bytes]``."""
