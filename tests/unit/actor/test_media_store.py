"""Images and sounds inside messages: stored apart, named by their SHA-256."""

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from actor.capture.episode_publisher import EpisodePublisher
from actor.capture.media_store import MediaStore, has_media
from actor.redaction.redaction import Rules
from actor.settings import ActorSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import Unavailable
from streams.core.events import Artifact, Episode
from streams.core.metrics import Metrics
from tests.support.captured import Spool

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(range(60))
SHA256 = hashlib.sha256(PIXEL).hexdigest()
BASE64 = base64.b64encode(PIXEL).decode()


def episode(*parts: Any) -> Episode:
    said = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, *parts]}]
    return Episode.model_validate({"episode_id": "e", "messages": said, "started_at": NOW, "ended_at": NOW})


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


@pytest.mark.parametrize(("part", "left", "content_type"), [
    (image(f"data:image/png;base64,{BASE64}"), image(f"sha256:{SHA256}"), "image/png"),
    (image(f"data:image/PNG;charset=x;base64,{BASE64}"), image(f"sha256:{SHA256}"), "image/png"),
    ({"type": "input_image", "image_url": f"data:image/webp;base64,{BASE64}"},
     {"type": "input_image", "image_url": f"sha256:{SHA256}"}, "image/webp"),
    ({"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
     {"type": "input_audio", "input_audio": {"data": f"sha256:{SHA256}", "format": "wav"}}, "audio/wav"),
])  # fmt: skip
def test_the_episode_keeps_a_reference_and_the_store_the_bytes(store: ArtifactStore, tmp_path: Path, part: Any, left: Any, content_type: str) -> None:
    assert has_media(episode(part))
    kept = MediaStore(store, 1000).taken_out(episode(part))
    assert kept.messages[0].content == ({"type": "text", "text": "what is this?"}, left)
    (media,) = kept.media
    assert (media.sha256, media.size_bytes, media.content_type, media.dropped) == (SHA256, len(PIXEL), content_type, None)
    assert media.artifact is not None
    (file,) = [path for path in store.fetch(media.artifact, tmp_path / "fetched").iterdir() if path.is_file()]
    assert file.read_bytes() == PIXEL
    assert not has_media(kept)
    assert Episode.decode(kept.encode()) == kept


def test_the_same_image_said_again_is_stored_once(store: ArtifactStore) -> None:
    media, part = MediaStore(store, 1000), image(f"data:image/png;base64,{BASE64}")
    first, second = media.taken_out(episode(part, part)), media.taken_out(episode(part))
    assert first.media == second.media


@pytest.mark.parametrize(("part", "limit", "why"), [
    (image(f"data:image/png;base64,{BASE64}"), 10, "larger than actor.max_media_bytes = 10"),
    (image(f"data:image/svg+xml;base64,{BASE64}"), 1000, "no type that is kept"),
    (image(f"data:;base64,{BASE64}"), 1000, "no type that is kept"),
])  # fmt: skip
def test_what_is_not_kept_is_told_and_its_bytes_are_gone_all_the_same(store: ArtifactStore, part: Any, limit: int, why: str) -> None:
    kept = MediaStore(store, limit).taken_out(episode(part))
    assert [(media.artifact, media.dropped, media.sha256) for media in kept.media] == [(None, why, SHA256)]
    assert BASE64.encode() not in kept.encode()


def test_a_store_that_is_away_costs_the_image_and_not_the_episode(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(folder: Path, path: str) -> Artifact:
        raise Unavailable("away")

    monkeypatch.setattr(store, "put", away)
    kept = MediaStore(store, 1000).taken_out(episode(image(f"data:image/png;base64,{BASE64}")))
    assert kept.media[0].dropped == "the artifact store did not take it"


@pytest.mark.parametrize("part", [image("https://example.org/a.png"), {"type": "text", "text": "data: none"}, {"data": 3, "format": "wav"}])
def test_links_and_text_are_no_media(part: Any) -> None:
    assert not has_media(episode(part))


def test_the_slow_way_out_ends_in_the_outbox_too(store: ArtifactStore) -> None:
    spool, metrics = Spool(), Metrics()
    publisher = EpisodePublisher(spool, metrics, ActorSettings(), Rules(("emails",)), MediaStore(store, 1000))  # type: ignore[arg-type]
    publisher.publish(episode(image(f"data:image/png;base64,{BASE64}"), {"type": "text", "text": "a@b.co"}))
    publisher.publish(episode())
    publisher.close()
    assert sorted((len(each.media), each.redacted.get("emails", 0)) for each in spool.episodes) == [(0, 0), (1, 1)]
    assert publisher.find("e") is not None
