"""Moves images and sounds from messages to the artifact store. In the episode their SHA-256 replaces them."""

import base64
import binascii
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import BadArtifact, Unavailable
from streams.core.events import Artifact, Episode, Media

SUFFIXES = {
    "image/png": ".png", "image/jpeg": ".jpg", "image/jpg": ".jpg", "image/gif": ".gif", "image/webp": ".webp",
    "audio/wav": ".wav", "audio/x-wav": ".wav", "audio/mpeg": ".mp3", "audio/mp3": ".mp3", "audio/flac": ".flac", "audio/ogg": ".ogg",
}  # fmt: skip
"""What is kept, by content type. No SVG: a browser would run it."""
_DATA_URL = re.compile(r"data:(?P<type>[\w.+/-]{0,100})(?:;[\w=.-]{1,100}){0,4}?;base64,", re.IGNORECASE)
log = structlog.get_logger()


class MediaStore:
    """Stores media under ``media/<sha256>``, each only once. Must be called from one thread at a time."""

    def __init__(self, store: ArtifactStore, max_bytes: int) -> None:
        self._store, self._max_bytes = store, max_bytes

    def taken_out(self, episode: Episode) -> Episode:
        """Store the episode's media and return the episode with references to them. A medium that cannot be stored is noted in the episode."""
        found: dict[str, Media] = {}
        messages = [self._walked(message.model_dump(exclude_unset=True), found) for message in episode.messages]
        return Episode.model_validate(episode.model_dump() | {"messages": messages, "media": tuple(found.values())})

    def _walked(self, value: Any, found: dict[str, Media]) -> Any:
        if (inline := _inline(value)) is not None:
            content_type, text = inline
            media = self._kept(content_type, text)
            found[media.sha256] = media
            return f"sha256:{media.sha256}" if isinstance(value, str) else {**value, "data": f"sha256:{media.sha256}"}
        if isinstance(value, dict):
            return {name: self._walked(each, found) for name, each in value.items()}
        return [self._walked(each, found) for each in value] if isinstance(value, list | tuple) else value

    def _kept(self, content_type: str, text: str) -> Media:
        try:
            data = base64.b64decode(text, validate=False)
        except binascii.Error:
            data = text.encode()
        media = Media(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), content_type=content_type)
        if content_type not in SUFFIXES:
            return media.model_copy(update={"dropped": "no type that is kept"})
        if len(data) > self._max_bytes:
            return media.model_copy(update={"dropped": f"larger than actor.max_media_bytes = {self._max_bytes}"})
        try:
            return media.model_copy(update={"artifact": self._put(media.sha256, SUFFIXES[content_type], data)})
        except (Unavailable, BadArtifact) as error:
            log.warning("media not kept", sha256=media.sha256, error=str(error))
            return media.model_copy(update={"dropped": "the artifact store did not take it"})

    def _put(self, sha256: str, suffix: str, data: bytes) -> Artifact:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / f"media{suffix}").write_bytes(data)
            return self._store.put(Path(folder), f"media/{sha256}")


def has_media(episode: Episode) -> bool:
    """True when a message contains media inline."""
    return any(_inline(each) is not None for message in episode.messages if isinstance(message.content, tuple) for each in _parts(message.content))


def _parts(value: Any) -> Iterator[Any]:
    yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _parts(each)


def _inline(value: Any) -> tuple[str, str] | None:
    """Content type and base64 of a data URL, or of OpenAI's ``input_audio``; None for anything else."""
    if isinstance(value, str) and (head := _DATA_URL.match(value)) is not None:
        return head["type"].lower(), value[head.end() :]
    if isinstance(value, dict) and isinstance(value.get("data"), str) and isinstance(value.get("format"), str):
        return (f"audio/{value['format'].lower()}"[:100], value["data"]) if not value["data"].startswith("sha256:") else None
    return None
