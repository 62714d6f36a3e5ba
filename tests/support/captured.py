"""A server and an engine of a few lines, with the real capture around them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from actor.adapters.request_routing import Router
from actor.api_keys import SCOPES
from actor.capture.capture_middleware import Capture
from actor.capture.conversations import Conversations
from actor.capture.engine_recorder import wrap_engine
from actor.capture.episode_publisher import EpisodePublisher
from actor.redaction.redaction import Rules
from actor.settings import ActorSettings
from streams.core.clock import FixedClock
from streams.core.events import Episode, Event, Feedback
from streams.core.metrics import Metrics
from streams.core.topics import Topic

CHAT = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "user": "ann"}
Script = Callable[["World", Scope, Receive, Send], Any]


class Engine:
    """Gives two tokens a step, as vLLM does: deltas when streaming, else everything at the end."""

    def __init__(self) -> None:
        self.asked_logprobs: list[int | None] = []
        self.broken = False

    async def generate(self, prompt: Any, params: Any, request_id: str, **_: Any) -> AsyncIterator[Any]:
        self.asked_logprobs.append(params.logprobs)
        deltas, choices = params.output_kind.name == "DELTA", range(getattr(params, "n", 1))
        steps = [([5, 6], "Ah", None), ([7], "oy", "stop")] if deltas else [([5, 6, 7], "Ahoy", "stop")]
        for ids, text, reason in steps:
            await asyncio.sleep(0)
            if self.broken and reason:
                raise RuntimeError("engine")
            for index in choices:
                yield self._output(index, ids, text, reason, params.flat_logprobs)

    def _output(self, index: int, ids: list[int], text: str, reason: str | None, flat: bool) -> Any:
        """Choice ``index`` answers with tokens 10 * index further on."""
        ids = [10 * index + i for i in ids]
        logprobs: Any = [{i: SimpleNamespace(logprob=-i / 10)} for i in ids]
        if flat:
            logprobs = SimpleNamespace(logprobs=[-i / 10 for i in ids])
        part = SimpleNamespace(index=index, token_ids=ids, logprobs=logprobs, text=text, finish_reason=reason)
        return SimpleNamespace(outputs=[part], prompt_token_ids=[1, 2, 3])


class Spool:
    """Stands for the outbox."""

    def __init__(self) -> None:
        self.episodes: list[Episode] = []
        self.feedback: list[Feedback] = []
        self.has_room = True

    def put(self, topic: Topic[Any], event: Event, headers: Any = ()) -> bool:
        event.encode()  # as the outbox does
        if not self.has_room:
            return False
        if isinstance(event, Episode):
            self.episodes.append(event)
        elif isinstance(event, Feedback):
            self.feedback.append(event)
        return True


@dataclass
class World:
    script: Script
    engine: Engine = field(default_factory=Engine)
    spool: Spool = field(default_factory=Spool)
    metrics: Metrics = field(default_factory=Metrics)
    router: Router = field(default_factory=lambda: Router("default"))
    bodies: list[bytes] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    """Of the actor's settings."""
    published: set[str] = field(default_factory=set)
    """Versions that can be loaded when somebody asks for them."""

    def __post_init__(self) -> None:
        wrap_engine(self.engine)
        settings = ActorSettings(**{"max_request_bytes": 2000} | self.changes)
        publisher = EpisodePublisher(self.spool, self.metrics, settings, Rules(settings.redact))  # type: ignore[arg-type]
        clock = FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.capture = Capture(self._app, settings, self.router, publisher, Conversations(100), clock, "r", self._want)

    def _want(self, name: str) -> Future[bool]:
        asked: Future[bool] = Future()
        if name in self.published:
            self.router.add(name, "a" * 64)
            assert name not in self.router.idle()  # a request waits for it: it may not leave before that is answered
        asked.set_result(name in self.published)
        return asked

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append((await receive())["body"])
        await self.script(self, scope, receive, send)

    async def post(
        self,
        body: Any,
        path: str = "/v1/chat/completions",
        leaves: bool = False,
        raw_headers: tuple[tuple[bytes, bytes], ...] = (),
        scopes: tuple[str, ...] | None = None,
        **headers: str,
    ) -> list[Message]:
        """``headers`` get ``x-tidemill-`` before their names; ``raw_headers`` are sent as they are."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        coming: list[Message] = [{"type": "http.request", "body": raw[:10], "more_body": True}, {"type": "http.request", "body": raw[10:]}]
        sent: list[Message] = []

        async def receive() -> Message:
            if coming:
                return coming.pop(0)
            if not leaves:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-length", str(len(raw)).encode())]}
        scope["headers"] += [*raw_headers]
        scope["headers"] += [(f"x-tidemill-{name}".encode(), value.encode()) for name, value in headers.items()]
        await self.capture(scope if scopes is None else scope | {SCOPES: scopes}, receive, send)
        return sent


def params(kind: str, n: int = 1, logprobs: int | None = None) -> Any:
    return SimpleNamespace(logprobs=logprobs, flat_logprobs=False, n=n, output_kind=SimpleNamespace(name=kind))


async def whole(world: World, scope: Scope, receive: Receive, send: Send) -> None:
    """A server that answers at once, on the adapter that the request's model names."""
    model = json.loads(world.bodies[-1])["model"]
    lora = SimpleNamespace(lora_name=model) if "@" in model else None
    async for _ in world.engine.generate("p", params("FINAL_ONLY"), "id", lora_request=lora):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b'{"answer": "Ahoy"}'})


async def streaming(world: World, scope: Scope, receive: Receive, send: Send) -> None:
    outputs = world.engine.generate("p", params("DELTA"), "id", lora_request=None)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    async for output in outputs:
        await send({"type": "http.response.body", "body": output.outputs[0].text.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def streaming_late(world: World, scope: Scope, receive: Receive, send: Send) -> None:
    """As vLLM streams a response: the answer's head is sent before the engine is asked."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    model = json.loads(world.bodies[-1])["model"]
    async for output in world.engine.generate("p", params("DELTA"), "id", lora_request=SimpleNamespace(lora_name=model)):
        await send({"type": "http.response.body", "body": output.outputs[0].text.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def left_alone(world: World, scope: Scope, receive: Receive, send: Send) -> None:
    """A server whose client hangs up after the first part."""
    outputs = world.engine.generate("p", params("DELTA"), "id", lora_request=None)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await anext(outputs)
    assert (await receive())["type"] == "http.disconnect"
    await outputs.aclose()


async def refusing(world: World, scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"no such model"})


async def breaking(world: World, scope: Scope, receive: Receive, send: Send) -> None:
    world.engine.broken = True
    async for _ in world.engine.generate("p", params("DELTA"), "id", lora_request=None):
        pass
