"""The base's folder: built on first use, checked against its checksums on every reuse. Imports no torch until something is to be built."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal

import structlog

from streams.artifacts.artifact_store import fingerprint
from streams.core.errors import BadArtifact, ConfigError

BaseKind = Literal["smollm2", "tiny"]
CHECKSUMS = "checksums.json"
WEIGHTS_LAYOUT: dict[BaseKind, int] = {"smollm2": 1, "tiny": 2}
"""Raised whenever what is built changes, so that a cache of an older build is not taken for this one."""

ROUTER_STD = 0.02
"""Of the routers' random weights."""

log = structlog.get_logger()


def prepare_base(kind: BaseKind, cache: Path, experts: int = 4, per_token: int = 2) -> Path:
    """The folder of a base: a Mixtral in bfloat16 with its tokenizer, and in ``dense/`` the dense model it was made from.

    Built once and renamed into place, so that a folder that exists is whole; checked against its checksums on every reuse.
    Raises BadArtifact when the files are not those that were built, ConfigError for an impossible shape or a missing package.
    """
    folder = base_path(kind, cache, experts, per_token)
    if folder.exists():
        _check(folder, WEIGHTS_LAYOUT[kind])
    else:
        _build(kind, folder, experts, per_token)
    return folder


def base_path(kind: BaseKind, cache: Path, experts: int = 4, per_token: int = 2) -> Path:
    """The folder of the base once it is built. Raises ConfigError for an impossible shape."""
    check_shape(experts, per_token)
    return cache.expanduser().resolve() / f"{kind}-e{experts}k{per_token}"


def check_shape(experts: int, per_token: int) -> None:
    """Raises ConfigError for a mixture that cannot be."""
    if not 1 <= per_token <= experts:
        raise ConfigError(f"{per_token} experts per token of {experts} experts: per_token must lie between 1 and experts")


def _build(kind: BaseKind, folder: Path, experts: int, per_token: int) -> None:
    from learner.models.base_building import write_smollm2, write_tiny

    log.info("base_building", kind=kind, folder=str(folder), experts=experts, experts_per_token=per_token)
    incoming = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        (write_smollm2 if kind == "smollm2" else write_tiny)(incoming, experts, per_token)
        sums = {"layout": WEIGHTS_LAYOUT[kind], "base": fingerprint(incoming), "dense": fingerprint(incoming / "dense")}
        (incoming / CHECKSUMS).write_text(json.dumps(sums, indent=1))
        if not folder.exists():  # another process may have been faster, with the same bytes
            incoming.rename(folder)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _check(folder: Path, layout: int) -> None:
    remedy = f"delete {folder} and it is built anew"
    try:
        sums: dict[str, Any] = json.loads((folder / CHECKSUMS).read_text())
    except FileNotFoundError:
        raise BadArtifact(f"{folder} has no {CHECKSUMS}: it was not made here; {remedy}") from None
    if sums.get("layout") != layout:
        raise BadArtifact(f"{folder} has layout {sums.get('layout')}, this version builds {layout}; {remedy}")
    for key, part in (("base", folder), ("dense", folder / "dense")):
        if (found := fingerprint(part)) != sums.get(key):
            raise BadArtifact(f"{part} has fingerprint {found}, but {sums.get(key)} was built; {remedy}")
