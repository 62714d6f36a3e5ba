"""A client whose request a stop cuts off is told so in OpenAI's JSON, as a real uvicorn stops."""

import asyncio
import json
import socket
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from actor.doors.stop_replies import StopReplies


async def never_done(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers /whole at once, begins /stream, and then waits for ever."""
    if scope["path"] == "/v1/stream":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]})
        await send({"type": "http.response.body", "body": b'data: {"a": 1}\n\n', "more_body": True})
    await asyncio.Event().wait()


async def stopped_while_asked(path: str) -> httpx.Response:
    """What a client receives that waits for an answer when the server is stopped."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(StopReplies(never_done), log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=30) as client:
            asked = asyncio.create_task(client.get(path))
            while not server.server_state.tasks:
                await asyncio.sleep(0.01)
            server.should_exit = True
            answer = await asked
        await serving
    return answer


async def test_an_answer_that_has_not_begun_becomes_a_503_that_a_client_can_read() -> None:
    answer = await stopped_while_asked("/v1/whole")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["type"] == "service_unavailable"
    assert "ask again" in answer.json()["error"]["message"]


async def test_a_stream_that_has_begun_ends_with_an_error_event() -> None:
    answer = await stopped_while_asked("/v1/stream")
    first, last = (json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line)
    assert first == {"a": 1}
    assert last["error"]["code"] == 503


async def test_openais_client_raises_an_error_of_its_own_for_such_a_stream() -> None:
    """The event is one that the client takes for an error."""
    told = await stopped_while_asked("/v1/stream")
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers={"content-type": "text/event-stream"}, content=told.content))
    client = openai.AsyncOpenAI(api_key="none", base_url="http://ring/v1", http_client=httpx.AsyncClient(transport=transport))
    stream: Any = await client.chat.completions.create(model="default", stream=True, messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.APIError, match="this replica was stopped"):
        async for _ in stream:
            pass


async def test_what_ends_for_another_reason_is_left_alone() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a bug")

    async def done_then_cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        raise asyncio.CancelledError

    receive: Any = None
    with pytest.raises(RuntimeError):
        await StopReplies(fails)({"type": "http"}, receive, send)
    assert sent == []
    with pytest.raises(asyncio.CancelledError):
        await StopReplies(done_then_cancelled)({"type": "http"}, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
