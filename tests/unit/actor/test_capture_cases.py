"""Every case in which an answer is asked for: exactly one episode for each answer, with its outcome, or none and a counted reason."""

import itertools
import json
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.support.captured import World, params

PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "response": "/v1/responses"}
TOOL = {"type": "function", "function": {"name": "sail", "parameters": {}}}
CALL = {"id": "call-1", "type": "function", "function": {"name": "sail", "arguments": "{}"}}


async def serve(world: World, scope: Scope, receive: Receive, send: Send) -> None:
    """As vLLM does it: prompts in turn; an engine that fails before the answer has begun is a 500; a client that goes stops the engine."""
    body = json.loads(world.bodies[-1])
    kind, n = ("DELTA" if body.get("stream") else "FINAL_ONLY"), body.get("n", 1)
    prompts = body.get("prompt", "p") if isinstance(body.get("prompt"), list) else ["p"]
    outputs = [world.engine.generate(prompt, params(kind, n, body.get("logprobs")), "id", lora_request=None) for prompt in prompts]
    if body.get("stream"):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for stream in outputs:
            if "leave" in str(body):
                for _ in range(n):
                    await anext(stream)
                assert (await receive())["type"] == "http.disconnect"
                await stream.aclose()
                continue
            async for output in stream:
                await send({"type": "http.response.body", "body": told(scope["path"], output.outputs[0], bool(body.get("tools"))), "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        return
    try:
        if "leave" in str(body):
            assert (await receive())["type"] == "http.disconnect"
            return
        found = [output.outputs[0] for stream in outputs async for output in stream]
    except RuntimeError:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    calls = [CALL] if body.get("tools") else None
    choices = [{"index": n, "message": {"content": part.text, "tool_calls": calls}} for n, part in enumerate(found)]
    output = [{"type": "message", "content": [{"type": "output_text", "text": "Ahoy"}]}]
    output += [{"type": "function_call", "call_id": "call-1", "name": "sail", "arguments": "{}"}] if calls else []  # type: ignore[list-item]
    answer = {"output": output} if scope["path"] == PATHS["response"] else {"choices": choices}
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


def told(path: str, part: Any, calls: bool) -> bytes:
    """One event of a stream."""
    last = part.finish_reason is not None
    if path == PATHS["response"]:
        item = {"type": "function_call", "call_id": "call-1", "name": "sail", "arguments": "{}"}
        output = [{"type": "message", "content": [{"type": "output_text", "text": "Ahoy"}]}, *([item] if calls else [])]
        event: dict[str, Any] = {"type": "response.completed", "response": {"output": output}} if last else {"type": "response.output_text.delta"}
    else:
        delta = {"content": part.text} | ({"tool_calls": [CALL | {"index": 0}]} if calls and last else {})
        event = {"choices": [{"index": part.index, "delta": delta}]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def request(api: str, **fields: Any) -> dict[str, Any]:
    words = "leave" if fields.pop("leaves", False) else "hi"
    asked: dict[str, Any] = {
        "chat": {"messages": [{"role": "user", "content": words}]},
        "completion": {"prompt": [words, words]},
        "response": {"input": words},
    }[api]
    return {"model": "default"} | asked | fields


STREAMED, N, LOGPROBS, TOOLS, ENDINGS = (False, True), (1, 2), (None, 3), (False, True), ("ends", "leaves", "breaks")
CASES = [
    (api, *case)
    for api, *case in itertools.product(PATHS, STREAMED, N, LOGPROBS, TOOLS, ENDINGS)
    if not (api == "response" and case[1] > 1) and not (api == "completion" and case[3])
]


@pytest.mark.parametrize(("api", "streamed", "n", "logprobs", "tools", "ending"), CASES)
async def test_each_answer_is_exactly_one_episode(api: str, streamed: bool, n: int, logprobs: int | None, tools: bool, ending: str) -> None:
    world = World(serve)
    world.engine.broken = ending == "breaks"
    fields: dict[str, Any] = {"stream": streamed, "logprobs": logprobs} | ({"n": n} if n > 1 else {}) | ({"tools": [TOOL]} if tools else {})
    body = request(api, leaves=ending == "leaves", **fields)
    try:
        sent = await world.post(body, PATHS[api], leaves=ending == "leaves")
    except RuntimeError:
        sent = []
    episodes, count = world.spool.episodes, n * (2 if api == "completion" else 1)
    assert len({episode.episode_id for episode in episodes}) == len(episodes) == count
    assert b"tidemill_capture_skipped_total{" not in world.metrics.text()
    assert {episode.outcome for episode in episodes} == {{"ends": "completed", "leaves": "cancelled", "breaks": "failed"}[ending]}
    assert {episode.api for episode in episodes} == {api}
    if ending == "ends":
        headers = dict(sent[0]["headers"])
        assert headers[b"x-tidemill-episode"].decode().split(",") == [episode.episode_id for episode in episodes]
        tokens = [tuple(10 * (index % n) + i for i in (5, 6, 7)) for index in range(count)]
        assert [episode.output_ids for episode in episodes] == tokens
        assert [episode.output_logprobs for episode in episodes] == [tuple(-i / 10 for i in ids) for ids in tokens]
        assert [episode.answer for episode in episodes] == ["Ahoy"] * count
        assert [len(episode.tool_calls) for episode in episodes] == [int(tools)] * count
        assert set(world.engine.asked_logprobs) == {logprobs or 0}


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_left_before_the_engine_began_is_counted(streamed: bool) -> None:
    async def late(world: World, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"

    world = World(late)
    await world.post(request("chat", stream=streamed), leaves=True)
    assert world.spool.episodes == []
    assert world.metrics.value("tidemill_capture_skipped_total", reason="gone_before_start") == 1


async def test_an_error_before_the_engine_is_a_failed_episode_and_an_answer_without_it_is_counted() -> None:
    async def answering(status: int, world: World, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    world = World(lambda world, scope, receive, send: answering(500, world, send))
    await world.post(request("chat"))
    (episode,) = world.spool.episodes
    assert (episode.outcome, episode.error) == ("failed", "status 500")
    world = World(lambda world, scope, receive, send: answering(200, world, send))
    await world.post(request("chat"))
    assert world.spool.episodes == []
    assert world.metrics.value("tidemill_capture_skipped_total", reason="unseen") == 1


async def test_beam_search_and_what_fits_no_event_are_counted() -> None:
    world = World(serve)
    await world.post(request("chat", use_beam_search=True))
    await world.post({"model": "default", "messages": [{"role": "user", "content": 7}]})
    assert world.spool.episodes == []
    assert [world.metrics.value("tidemill_capture_skipped_total", reason=reason) for reason in ("beam_search", "invalid")] == [1, 1]
