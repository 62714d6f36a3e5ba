"""What vLLM could answer past routing and capture is closed."""

import json

import pytest
from starlette.types import Message, Receive, Scope, Send

from actor.capture.client_request import APIS
from actor.capture.open_vllm_paths import CLOSED, TELLING, ServerPaths


async def ask(path: str, method: str = "POST", kind: str = "http") -> list[Message]:
    sent: list[Message] = []

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "answered"})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Message) -> None:
        sent.append(message)

    await ServerPaths(server)({"type": kind, "method": method, "path": path, "headers": []}, receive, send)
    return sent


@pytest.mark.parametrize("path", sorted({*APIS, *TELLING, "/v1/chat/completions/"}))
async def test_what_is_captured_and_what_tells_of_the_server_is_open(path: str) -> None:
    assert await ask(path) == [{"type": "answered"}]


@pytest.mark.parametrize("path", sorted({*CLOSED, "/", "/v1/of-the-next-version", "/V1/chat/completions", "//v1/messages", "/v1/load_lora_adapter"}))
@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
async def test_every_other_path_is_closed_with_an_error_in_openais_form(path: str, method: str) -> None:
    start, body = await ask(path, method)
    error = json.loads(body["body"])["error"]
    assert (start["status"], error["code"], error["type"]) == (404, 404, "NotFoundError")
    assert all(api in error["message"] for api in APIS)


async def test_a_websocket_is_closed_and_a_browsers_preflight_is_not() -> None:
    assert [message["type"] for message in await ask("/v1/realtime", kind="websocket")] == ["websocket.close"]
    assert await ask("/v1/messages", "OPTIONS") == [{"type": "answered"}]
    assert await ask("", kind="lifespan") == [{"type": "answered"}]
