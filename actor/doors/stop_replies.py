"""What clients are told whose request a stop cuts off: OpenAI's JSON error with status 503, or an error event in a stream that has begun."""

import asyncio
import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actor.asgi_replies import reply

TOLD: dict[str, Any] = {
    "error": {"message": "this replica was stopped before the answer was done: ask again", "type": "service_unavailable", "param": None, "code": 503}
}
RETRY_AFTER = (b"retry-after", b"1")


class StopReplies:
    """The outermost ASGI layer. uvicorn cancels what still runs ``actor.drain_s`` after a stop; without this layer the client would get a bare 500,
    or a stream that breaks off."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = streams = done = False

        async def heard(message: Message) -> None:
            nonlocal began, streams, done
            if message["type"] == "http.response.start":
                began, headers = True, message.get("headers", ())
                streams = any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
            elif message["type"] == "http.response.body":
                done = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, heard)
        except asyncio.CancelledError:
            if done or (began and not streams):  # nothing may follow, or nothing that the client could read
                raise
            if streams:
                await send({"type": "http.response.body", "body": f"data: {json.dumps(TOLD)}\n\n".encode()})
            else:
                await reply(send, 503, TOLD, [RETRY_AFTER])
