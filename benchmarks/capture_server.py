"""The two servers that ``make bench-capture`` asks: a trivial one, and an actor on vLLM. A request with ``x-bench-capture: on`` is captured.

Both ways are one process and one engine; what differs is whether the request passes by our layers. ``python -m benchmarks.capture_server JSON``.
"""

import asyncio
import gc
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from actor.adapters.request_routing import Router
from actor.asgi_replies import reply
from actor.capture.capture_middleware import Capture, read_body
from actor.capture.conversations import Conversations
from actor.capture.engine_recorder import wrap_engine
from actor.capture.episode_publisher import EpisodePublisher
from actor.capture.media_store import MediaStore
from actor.doors.http_doors import Doors
from actor.redaction.redaction import redactor_of
from actor.settings import ActorSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.clock import SystemClock
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.kafka import KafkaSettings, Producer
from streams.outbox.outbox import Outbox

TOKENS = 48


class Switch:
    """To the layers where the request asks for them, else past them."""

    def __init__(self, captured: ASGIApp, bare: ASGIApp) -> None:
        self._captured, self._bare = captured, bare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        on = scope["type"] == "http" and (b"x-bench-capture", b"on") in scope["headers"]
        await (self._captured if on or scope.get("method") == "GET" else self._bare)(scope, receive, send)


class InstantEngine:
    """Answers every prompt with the same tokens at once, in vLLM's shape."""

    def __init__(self) -> None:
        ids, logprobs = list(range(100, 100 + TOKENS)), SimpleNamespace(logprobs=[-0.25] * TOKENS)
        part = SimpleNamespace(index=0, token_ids=ids, logprobs=logprobs, text="You will like the sea. " * 10, finish_reason="stop")
        self._output = SimpleNamespace(outputs=[part], prompt_token_ids=list(range(300)))

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str, **_: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        yield self._output


def trivial(given: dict[str, Any]) -> None:
    """A server of a few lines with an engine that costs nothing, and all of the actor's layers around it."""
    engine: Any = InstantEngine()
    wrap_engine(engine)

    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/chat/completions":
            return
        body = json.loads(await read_body(receive, 1 << 20) or b"{}")
        params = SimpleNamespace(logprobs=None, flat_logprobs=False, output_kind=SimpleNamespace(name="FINAL_ONLY"))
        text = ""
        async for output in engine.generate(body["messages"], params, "id"):
            text = output.outputs[0].text
        message = {"role": "assistant", "content": text}
        await reply(send, 200, {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
                                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                                "usage": {"prompt_tokens": 300, "completion_tokens": TOKENS, "total_tokens": 300 + TOKENS}})  # fmt: skip

    settings, metrics, clock = ActorSettings(), Metrics(), SystemClock()
    outbox = Outbox(Path(given["state"]) / "outbox.sqlite", lambda: Producer(KafkaSettings(**given["kafka"]), metrics, "bench"), metrics, "actor",
                    settings, clock)  # fmt: skip
    publisher = EpisodePublisher(
        outbox, metrics, settings, redactor_of(settings), MediaStore(ArtifactStore(given["artifacts"]), settings.max_media_bytes)
    )
    conversations = Conversations(settings.remembered_answers)
    captured = Capture(bare, settings, Router("default"), publisher, conversations, clock, "bench")
    doors = Doors(captured, settings, publisher, conversations, metrics, clock, "default", list)
    gc.collect()
    gc.freeze()  # as vLLM's server does once it is up: walking all that was imported would hold every answer up for a tenth of a second now and then
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when it is done: the outbox is still to be emptied
    try:
        uvicorn.run(
            Switch(doors, bare), host="127.0.0.1", port=given["port"], log_level="error", access_log=False, lifespan="off", timeout_keep_alive=60
        )
    finally:
        outbox.close(30)


def on_vllm(given: dict[str, Any]) -> None:
    """The actor as it is; only its capture is told to let pass what does not ask for it."""
    from actor import vllm_server as server
    from actor.capture import capture_middleware as layer

    class Switched(Capture):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            on = scope["type"] == "http" and (b"x-bench-capture", b"on") in scope["headers"]
            await (super().__call__ if on else self._app)(scope, receive, send)

    layer.Capture = Switched  # type: ignore[misc]  # before actor.server_wiring, and vLLM with it, is imported
    kafka, artifacts = KafkaSettings(**given["kafka"]), ArtifactStore(given["artifacts"])
    context = PartContext(kafka=kafka, artifacts=artifacts, policy="default", base=Path(given["base"]), state=Path(given["state"]))
    server.run(ActorSettings(port=given["port"], max_model_tokens=1024, drain_s=30), context)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    (on_vllm if asked["base"] else trivial)(asked)
