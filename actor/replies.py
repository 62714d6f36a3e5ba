"""Answers of our own on vLLM's server: JSON, by plain ASGI."""

import json
from collections.abc import Sequence
from typing import Any

from starlette.types import Send


async def reply(send: Send, status: int, content: dict[str, Any], headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answer with JSON."""
    body = json.dumps(content).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})
