"""A picture in a chat message, from the HTTP door to Kafka and the artifact store: every layer of the actor, around an engine of a few lines.

vLLM itself refuses pictures for bases that see none, and the small ones here see none.
"""

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from actor.adapters.request_routing import Router
from actor.capture.capture_middleware import Capture
from actor.capture.conversations import Conversations
from actor.capture.engine_recorder import wrap_engine
from actor.capture.episode_publisher import EpisodePublisher
from actor.capture.media_store import MediaStore
from actor.doors.http_doors import Doors
from actor.redaction.redaction import Rules
from actor.settings import ActorSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.clock import SystemClock
from streams.core.events import Episode
from streams.core.metrics import Metrics
from streams.core.topics import EPISODES
from streams.kafka import KafkaSettings, Producer, read_to_end
from streams.outbox.outbox import Outbox
from tests.support.captured import Engine, params
from tests.support.running import wait_for

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABh6FO1AAAAABJRU5ErkJggg==")
DATA = base64.b64encode(PIXEL).decode()


@pytest.fixture
def actor(kafka_settings: KafkaSettings, tmp_path: Path) -> Iterator[httpx.Client]:
    """As wiring.py puts it together, with small limits."""
    engine, settings, metrics, clock = Engine(), ActorSettings(max_media_bytes=1000), Metrics(), SystemClock()
    wrap_engine(engine)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        message = json.loads((await receive())["body"])["messages"][-1]
        assert DATA in json.dumps(message)  # the engine sees what was sent
        async for _ in engine.generate("p", params("FINAL_ONLY"), "id", lora_request=SimpleNamespace(lora_name="base")):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b"{}"})

    outbox = Outbox(tmp_path / "outbox.sqlite", lambda: Producer(kafka_settings, metrics, "test"), metrics, "actor", settings, clock)
    media = MediaStore(ArtifactStore(str(tmp_path / "artifacts")), settings.max_media_bytes)
    publisher, conversations = EpisodePublisher(outbox, metrics, settings, Rules(settings.redact), media), Conversations(100)
    captured = Capture(answer, settings, Router("default"), publisher, conversations, clock, "replica")
    listening = socket.create_server(("127.0.0.1", 0))
    doors = Doors(captured, settings, publisher, conversations, metrics, clock, "default", list)
    server = uvicorn.Server(uvicorn.Config(doors, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60) as client:
        yield client
    server.should_exit = True
    thread.join(60)
    publisher.close()
    outbox.close(60)


def test_a_picture_goes_to_the_artifact_store_and_the_episode_on_the_log_names_it(
    actor: httpx.Client, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    small = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}
    large = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(bytes(2000)).decode()}"}}
    said = [{"role": "user", "content": [{"type": "text", "text": "Which is larger?"}, small, large]}]
    answered = actor.post("/v1/chat/completions", json={"model": "default", "messages": said})
    found: list[Episode] = []

    def arrived() -> bool:
        found[:] = [EPISODES.decode(record.value) for record in read_to_end(kafka_settings, EPISODES, "test", Metrics())]
        return bool(found)

    wait_for(arrived, 60)
    (episode,) = found
    kept, dropped = episode.media
    assert answered.headers["x-tidemill-episode"] == episode.episode_id
    assert DATA.encode() not in episode.encode()
    assert isinstance(episode.messages[0].content, tuple)
    assert episode.messages[0].content[1] == {"type": "image_url", "image_url": {"url": f"sha256:{hashlib.sha256(PIXEL).hexdigest()}"}}
    assert (kept.sha256, kept.size_bytes, kept.content_type) == (hashlib.sha256(PIXEL).hexdigest(), len(PIXEL), "image/png")
    assert kept.artifact is not None
    assert (ArtifactStore(str(tmp_path / "artifacts")).fetch(kept.artifact, tmp_path / "fetched") / "media.png").read_bytes() == PIXEL
    assert (dropped.artifact, dropped.dropped) == (None, "larger than actor.max_media_bytes = 1000")
    assert actor.get(f"/v1/episodes/{episode.episode_id}").json()["media"][0]["sha256"] == kept.sha256
