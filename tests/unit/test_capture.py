"""What passes by unharmed and what is kept of it, with a server and an engine of a few lines."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from actor.capture import Capture, Keeper
from actor.requests import tool_calls
from actor.routing import Route, Router
from actor.settings import ActorSettings
from actor.tap import wrap_engine
from streams.clock import FixedClock
from streams.events import Episode, Event
from streams.metrics import Metrics
from streams.topics import Topic

CHAT = {"model": "default", "messages": [{"role": "user", "content": "hi"}], "user": "ann"}
Script = Callable[["World", Scope, Receive, Send], Any]


class Engine:
    """Gives two tokens a step, as vLLM does: deltas when streaming, else everything at the end."""

    def __init__(self) -> None:
        self.asked_logprobs: list[int | None] = []
        self.broken = False

    async def generate(self, prompt: Any, params: Any, request_id: str, **_: Any) -> AsyncIterator[Any]:
        self.asked_logprobs.append(params.logprobs)
        steps = [([5, 6], "Ah", None), ([7], "oy", "stop")]
        so_far: list[int] = []
        for ids, text, reason in steps:
            await asyncio.sleep(0)
            if self.broken and reason:
                raise RuntimeError("engine")
            so_far += ids
            if params.output_kind.name == "DELTA":
                yield self._output(ids, text, reason)
        if params.output_kind.name != "DELTA":
            yield self._output(so_far, "Ahoy", "stop")

    def _output(self, ids: list[int], text: str, reason: str | None) -> Any:
        logprobs = [{i: SimpleNamespace(logprob=-i / 10)} for i in ids]
        part = SimpleNamespace(index=0, token_ids=ids, logprobs=logprobs, text=text, finish_reason=reason)
        return SimpleNamespace(outputs=[part], prompt_token_ids=[1, 2, 3])


class Spool:
    """Stands for the outbox."""

    def __init__(self) -> None:
        self.episodes: list[Episode] = []

    def put(self, topic: Topic[Any], event: Event) -> bool:
        assert isinstance(event, Episode)
        self.episodes.append(event)
        return True


@dataclass
class World:
    script: Script
    engine: Engine = field(default_factory=Engine)
    spool: Spool = field(default_factory=Spool)
    metrics: Metrics = field(default_factory=Metrics)
    router: Router = field(default_factory=lambda: Router("default"))
    bodies: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        wrap_engine(self.engine)
        keeper = Keeper(self.spool, self.metrics, 10)  # type: ignore[arg-type]
        settings = ActorSettings(max_request_bytes=2000)
        self.capture = Capture(self._app, settings, self.router, keeper, FixedClock(datetime(2026, 1, 1, tzinfo=UTC)), "r")

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append((await receive())["body"])
        await self.script(self, scope, receive, send)

    async def post(self, body: Any, path: str = "/v1/chat/completions", leaves: bool = False, **headers: str) -> list[Message]:
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
        scope["headers"] += [(f"x-tidemill-{name}".encode(), value.encode()) for name, value in headers.items()]
        await self.capture(scope, receive, send)
        return sent


def params(kind: str) -> Any:
    return SimpleNamespace(logprobs=None, output_kind=SimpleNamespace(name=kind))


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


async def test_the_response_is_passed_on_byte_for_byte_with_headers_before_it() -> None:
    world = World(whole)
    start, body = await world.post(CHAT)
    assert body == {"type": "http.response.body", "body": b'{"answer": "Ahoy"}'}
    (episode,) = world.spool.episodes
    assert dict(start["headers"]) == {
        b"content-type": b"application/json",
        b"x-tidemill-episode": episode.episode_id.encode(),
        b"x-tidemill-adapter": b"base",
    }


@pytest.mark.parametrize("script", [whole, streaming])
async def test_the_engines_tokens_and_logprobs_are_kept_whether_streamed_or_not(script: Script) -> None:
    world = World(script)
    await world.post(CHAT)
    (episode,) = world.spool.episodes
    assert (episode.prompt_ids, episode.output_ids, episode.output_logprobs) == ((1, 2, 3), (5, 6, 7), (-0.5, -0.6, -0.7))
    assert (episode.answer, episode.outcome, episode.user_id) == ("Ahoy", "completed", "ann")
    assert world.engine.asked_logprobs == [0]


async def test_the_live_adapter_answers_for_the_policy_and_the_episode_says_so() -> None:
    world = World(whole)
    world.router.add("default@7", "b" * 64)
    world.router.route = Route("default@7")
    start, _ = await world.post(CHAT)
    assert json.loads(world.bodies[0])["model"] == "default@7"
    assert dict(start["headers"])[b"x-tidemill-adapter-sha256"] == b"b" * 64
    assert (world.spool.episodes[0].adapter, world.spool.episodes[0].adapter_sha256) == ("default@7", "b" * 64)
    assert world.router.idle() == []


async def test_a_conversation_stays_with_the_canary_and_the_header_names_it() -> None:
    world = World(whole)
    for name in ("default@6", "default@7"):
        world.router.add(name, "b" * 64)
    world.router.route = Route("default@6", "default@7", canary_share=0.5)
    told = [dict((await world.post(CHAT, conversation=f"c-{n // 3}"))[0]["headers"])[b"x-tidemill-adapter"] for n in range(60)]
    assert set(told) == {b"default@6", b"default@7"}
    assert all(len(set(told[n : n + 3])) == 1 for n in range(0, 60, 3))


async def test_who_declines_capture_is_answered_all_the_same_and_leaves_no_episode() -> None:
    world = World(whole)
    start, body = await world.post(CHAT, capture="off")
    assert (start["status"], body["body"]) == (200, b'{"answer": "Ahoy"}')
    assert dict(start["headers"])[b"x-tidemill-adapter"] == b"base"
    assert b"x-tidemill-episode" not in dict(start["headers"])
    assert world.spool.episodes == []
    assert world.metrics.value("tidemill_capture_skipped_total", reason="declined") == 1


async def test_the_content_length_is_that_of_the_rewritten_body() -> None:
    lengths: list[int] = []

    async def measuring(world: World, scope: Scope, receive: Receive, send: Send) -> None:
        lengths.append(int(dict(scope["headers"])[b"content-length"]))
        await refusing(world, scope, receive, send)

    world = World(measuring)
    await world.post(CHAT)
    assert lengths == [len(world.bodies[0])]


async def test_a_client_that_leaves_makes_a_cancelled_episode_of_what_it_got() -> None:
    world = World(left_alone)
    await world.post(CHAT, leaves=True)
    (episode,) = world.spool.episodes
    assert (episode.outcome, episode.output_ids, episode.answer) == ("cancelled", (5, 6), "Ah")


async def test_a_server_that_fails_makes_a_failed_episode_and_the_error_goes_on() -> None:
    world = World(breaking)
    with pytest.raises(RuntimeError):
        await world.post(CHAT)
    (episode,) = world.spool.episodes
    assert (episode.outcome, episode.error) == ("failed", "RuntimeError")


async def test_a_refused_request_is_counted_and_is_no_episode() -> None:
    world = World(refusing)
    start, _ = await world.post(CHAT)
    assert start["headers"] == []
    assert world.spool.episodes == []
    assert world.metrics.value("tidemill_capture_skipped_total", reason="refused") == 1


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff"])
async def test_what_is_no_json_object_is_the_servers_to_refuse(body: bytes) -> None:
    world = World(refusing)
    await world.post(body)
    assert world.bodies == [body]


async def test_a_request_that_is_too_large_never_reaches_the_server() -> None:
    world = World(whole)
    start, _ = await world.post(CHAT | {"padding": "x" * 3000})
    assert start["status"] == 413
    assert world.bodies == []


async def test_a_user_name_that_fits_no_event_does_not_cost_the_episode() -> None:
    world = World(whole)
    await world.post(CHAT | {"user": "a\n" * 300})
    assert world.spool.episodes[0].user_id == "a" * 200


async def test_requests_in_flight_are_counted_until_they_end() -> None:
    seen: list[bool] = []

    async def looking(world: World, scope: Scope, receive: Receive, send: Send) -> None:
        seen.append("default@1" in world.router.idle())
        await refusing(world, scope, receive, send)

    world = World(looking)
    for version in (1, 2, 3):
        world.router.add(f"default@{version}", "c" * 64)
        world.router.route = Route(f"default@{version}", kept=(f"default@{version - 1}",))
    await world.post(CHAT | {"model": "default@1"})
    assert seen == [False]
    assert world.router.idle() == ["default@1"]


def test_streamed_tool_calls_are_put_together_as_a_client_would() -> None:
    parts: list[dict[str, Any]] = [
        {"index": 0, "delta": {"role": "assistant", "content": "Well"}},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "call-1", "function": {"name": "sail", "arguments": '{"to": '}}]}},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '"sea"}'}}]}},
    ]
    stream = b"".join(b"data: " + json.dumps({"choices": [part]}).encode() + b"\n\n" for part in parts) + b"data: [DONE]\n\n"
    call = {"id": "call-1", "type": "function", "function": {"name": "sail", "arguments": '{"to": "sea"}'}}
    assert tool_calls(stream, streamed=True) == {0: ("Well", (call,))}
    assert tool_calls(b"<html>", streamed=False) == {}
