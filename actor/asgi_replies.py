"""Tidemill's own HTTP replies on vLLM's server, in plain ASGI."""

import json
from collections.abc import Sequence
from typing import Any

from starlette.types import Send


async def reply(send: Send, status: int, content: dict[str, Any], headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answer with JSON."""
    await reply_bytes(send, status, "application/json", json.dumps(content).encode(), headers)


async def reply_bytes(send: Send, status: int, content_type: str, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answer with these bytes."""
    own = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})
