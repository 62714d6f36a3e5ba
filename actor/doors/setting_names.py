"""Errors of vLLM's server in our words: an operator sets ``actor.tool_call_parser``, not ``--tool-call-parser``."""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

SETTINGS = {
    "--enable-auto-tool-choice and --tool-call-parser": "the setting actor.tool_call_parser",
    "--enable-auto-tool-choice": "the setting actor.tool_call_parser", "--tool-call-parser": "the setting actor.tool_call_parser",
    "--max-model-len": "the setting actor.max_model_tokens", "max_model_len": "the setting actor.max_model_tokens",
    "--max-num-seqs": "the setting actor.max_concurrent", "--max-lora-rank": "the setting actor.max_rank",
    "--max-loras": "the setting actor.max_loras", "--allowed-media-domains": "the setting actor.media_hosts",
}  # fmt: skip
"""The settings behind the flags that we give to vLLM."""
LARGEST_BYTES = 64 << 10
"""A longer error passes through as it is."""
_FLAG = re.compile("|".join(rf"(?<![\w-]){re.escape(flag)}(?![\w-])" for flag in sorted(SETTINGS, key=len, reverse=True)).encode())


def in_our_words(body: bytes) -> bytes:
    """An error's body with the names of settings in place of vLLM's flags."""
    return _FLAG.sub(lambda found: SETTINGS[found[0].decode()].encode(), body)


class SettingNames:
    """The ASGI layer around vLLM's own. Answers pass through untouched; an error in JSON is held until it is whole."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held: Message | None = None
        body = bytearray()

        async def told(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and message["status"] >= 400 and _is_json(message):
                held = message
                return
            if held is None:
                await send(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body") and len(body) < LARGEST_BYTES:
                return
            start, held = held, None
            whole = bytes(body) if message.get("more_body") else in_our_words(bytes(body))
            length = [(b"content-length", str(len(whole)).encode())] if not message.get("more_body") else []
            headers = [(name, value) for name, value in start["headers"] if not (length and name.lower() == b"content-length")]
            await send({**start, "headers": [*headers, *length]})
            await send({**message, "body": whole})

        await self._app(scope, receive, told)


def _is_json(message: Message) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"application/json") for name, value in message.get("headers", ()))
