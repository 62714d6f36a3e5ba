"""Artifacts: folders of files under one URI (``file://``, ``s3://``, ``gs://``), written once, checked by SHA-256.

An artifact's checksum is the checksum of its manifest, which lists every file with its own checksum and size. So one hash in an event proves
all bytes of an artifact. Where signing keys are set, a signature beside the manifest proves who made it (``signing.py``). Only the file types
in ``ALLOWED`` are accepted: weights are safetensors, nothing is unpickled.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from pathlib import Path, PurePosixPath

import pyarrow
import pyarrow.fs
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from streams.artifacts.signing import Signing
from streams.core.errors import BadArtifact, ConfigError, Unavailable
from streams.core.events import Artifact, Sha256

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.signature"
MEDIA = (".png", ".jpg", ".gif", ".webp", ".wav", ".mp3", ".flac", ".ogg")
ALLOWED = (".safetensors", ".json", ".jsonl", ".txt", ".jinja", *MEDIA)
MAX_FILES = 10_000
NAME = re.compile(r"[A-Za-z0-9._@/ +-]{1,500}")


class ManifestEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256
    size_bytes: int = Field(ge=0)


MANIFEST_SHAPE = TypeAdapter(dict[str, ManifestEntry])


class ArtifactStore:
    """Puts folders under a URI and fetches them back, verified."""

    def __init__(self, uri: str, signing: Signing | None = None) -> None:
        self._signing = signing or Signing()
        try:
            self._filesystem, self._root = pyarrow.fs.FileSystem.from_uri(_absolute(uri))
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ConfigError(f"artifacts.uri = {uri!r} is not a place pyarrow.fs can open: {error}") from None

    def put(self, folder: Path, path: str) -> Artifact:
        """Store every file of ``folder`` as artifact ``path``. Storing the same content again is fine; other content raises BadArtifact."""
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir()}
        if not files:
            raise BadArtifact(f"{folder} holds no files")
        for name, source in files.items():
            _check_name(name)
            if source.is_symlink() or not source.is_file():
                raise BadArtifact(f"{source} is a link or a special file; an artifact holds plain files")
        manifest = {name: {"sha256": sha256_of(p), "size_bytes": p.stat().st_size} for name, p in files.items()}
        text = json.dumps(manifest, sort_keys=True, indent=1).encode()
        artifact = Artifact(path=path, sha256=hashlib.sha256(text).hexdigest(), size_bytes=sum(p.stat().st_size for p in files.values()))
        target = self._at(path)
        try:
            if (standing := self._read_small(f"{target}/{MANIFEST}")) is not None:
                if standing != text:
                    raise BadArtifact(f"artifact {path} exists with other content; artifacts are written once")
                self._sign(artifact)
                return artifact
            for name, source in files.items():
                self._write(f"{target}/{name}", source.read_bytes())
            self._sign(artifact)
            self._write(f"{target}/{MANIFEST}", text)  # last: an artifact without a manifest does not exist yet
        except OSError as error:
            raise Unavailable(f"cannot write artifact {path}: {error}") from error
        return artifact

    def fetch(self, artifact: Artifact, into: Path) -> Path:
        """Bring the artifact's files into the folder ``into`` (all of them or none). Raises BadArtifact or Unavailable."""
        incoming = into.parent / f".{into.name}.{uuid.uuid4().hex}"
        try:
            incoming.mkdir(parents=True)
            text = self._read_small(f"{self._at(artifact.path)}/{MANIFEST}")
            if text is None:
                raise BadArtifact(f"artifact {artifact.path} has no manifest: its upload never finished, or it was deleted")
            if (found := hashlib.sha256(text).hexdigest()) != artifact.sha256:
                raise BadArtifact(f"artifact {artifact.path}: manifest has SHA-256 {found}, its event says {artifact.sha256}")
            if self._signing.demands:
                self._signing.verify(artifact.path, artifact.sha256, self._read_small(f"{self._at(artifact.path)}/{SIGNATURE}"))
            for name, entry in _entries(artifact, text).items():
                data = self._read(f"{self._at(artifact.path)}/{name}", entry.size_bytes)
                if len(data) != entry.size_bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
                    raise BadArtifact(f"artifact {artifact.path}: {name} is truncated or altered ({len(data)} of {entry.size_bytes} bytes)")
                (incoming / name).parent.mkdir(parents=True, exist_ok=True)
                (incoming / name).write_bytes(data)
            if into.exists():
                shutil.rmtree(into)  # only now: until the new files are complete, the old ones are better than nothing
            incoming.rename(into)
        except OSError as error:
            raise Unavailable(f"cannot fetch artifact {artifact.path} into {into}: {error}") from error
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return into

    def remove(self, path: str) -> bool:
        """Delete an artifact; False when there was none. The manifest goes first, so that after a kill the rest is no longer an artifact."""
        target = self._at(path)
        try:
            if self._filesystem.get_file_info(f"{target}/{MANIFEST}").type == pyarrow.fs.FileType.NotFound:
                return False
            self._filesystem.delete_file(f"{target}/{MANIFEST}")
            self._filesystem.delete_dir(target)
        except OSError as error:
            raise Unavailable(f"cannot delete artifact {path}: {error}") from error
        return True

    def below(self, folder: str) -> dict[str, int]:
        """Path and size in bytes of each finished artifact directly below a folder. Artifacts that are being written are not listed."""
        try:
            places = self._filesystem.get_file_info(pyarrow.fs.FileSelector(self._at(folder), allow_not_found=True))
            paths = [f"{folder}/{place.base_name}" for place in places if place.type == pyarrow.fs.FileType.Directory]
            manifests = {path: self._read_small(f"{self._at(path)}/{MANIFEST}") for path in sorted(paths)}
        except OSError as error:
            raise Unavailable(f"cannot list the artifacts of {folder}: {error}") from error
        finished = {path: MANIFEST_SHAPE.validate_json(text) for path, text in manifests.items() if text is not None}
        return {path: sum(entry.size_bytes for entry in entries.values()) for path, entries in finished.items()}

    def _sign(self, artifact: Artifact) -> None:
        """Write the signature, if there is a key. Ed25519 is deterministic: signing again writes the same bytes."""
        if (signature := self._signing.sign(artifact.path, artifact.sha256)) is not None:
            self._write(f"{self._at(artifact.path)}/{SIGNATURE}", signature)

    def _at(self, path: str) -> str:
        return str(PurePosixPath(self._root) / path)

    def _write(self, path: str, data: bytes) -> None:
        self._filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        with self._filesystem.open_output_stream(temporary) as stream:
            stream.write(data)
        local = isinstance(self._filesystem, pyarrow.fs.LocalFileSystem)
        if local:
            _sync(temporary)  # before the rename: after a power cut a manifest must not name files that the disk does not have
        self._filesystem.move(temporary, path)
        if local:
            _sync(str(PurePosixPath(path).parent))

    def _read(self, path: str, limit: int) -> bytes:
        try:
            with self._filesystem.open_input_stream(path) as stream:
                return bytes(stream.read(limit + 1))
        except FileNotFoundError:
            raise BadArtifact(f"{path} is missing") from None
        except OSError as error:
            raise Unavailable(f"cannot read {path}: {error}") from error

    def _read_small(self, path: str) -> bytes | None:
        if self._filesystem.get_file_info(path).type == pyarrow.fs.FileType.NotFound:
            return None
        return self._read(path, 16 << 20)


def _sync(path: str) -> None:
    """fsync a local file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(folder: Path) -> str:
    """Hex SHA-256 that identifies a model: over the checksums of its configuration and weights. The folder's name does not matter."""
    files = [p for p in sorted(folder.iterdir()) if p.name == "config.json" or p.suffix == ".safetensors"]
    if not files:
        raise BadArtifact(f"{folder} holds no model (no config.json, no .safetensors)")
    return hashlib.sha256("\n".join(f"{p.name} {sha256_of(p)}" for p in files).encode()).hexdigest()


def _absolute(uri: str) -> str:
    return uri if "://" in uri else Path(uri).expanduser().resolve().as_uri()


def _check_name(name: str) -> None:
    if name.startswith("/") or not NAME.fullmatch(name) or any(part in ("", ".", "..") for part in name.split("/")):
        raise BadArtifact(f"file name {name!r} would leave the artifact's folder, or is not a plain name")
    if not name.endswith(ALLOWED):
        raise BadArtifact(f"file {name!r} is not one of {', '.join(ALLOWED)}")
    if name == MANIFEST:
        raise BadArtifact(f"{MANIFEST} is reserved for the store itself")


def _entries(artifact: Artifact, text: bytes) -> dict[str, ManifestEntry]:
    """The manifest's entries, checked before a byte is fetched."""
    try:
        entries = MANIFEST_SHAPE.validate_json(text)
    except ValidationError as error:
        raise BadArtifact(f"the manifest of artifact {artifact.path} is malformed ({error.error_count()} problems)") from None
    if not 0 < len(entries) <= MAX_FILES:
        raise BadArtifact(f"artifact {artifact.path} lists {len(entries)} files, not 1 to {MAX_FILES}")
    for name in entries:
        _check_name(name)
        if any(str(parent) in entries for parent in PurePosixPath(name).parents):
            raise BadArtifact(f"artifact {artifact.path} lists a file below another file: {name}")
    if (total := sum(entry.size_bytes for entry in entries.values())) != artifact.size_bytes:
        raise BadArtifact(f"artifact {artifact.path} lists {total} bytes, its event says {artifact.size_bytes}")
    return entries
