"""vLLM's errors name our settings, and answers pass through untouched."""

import re
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from actor.doors.setting_names import LARGEST_BYTES, SETTINGS, SettingNames, in_our_words
from actor.settings import ActorSettings
from actor.vllm_arguments import arguments

VLLM_SAYS = b'{"error": {"message": "\\"auto\\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set"}}'


async def through(status: int, parts: list[bytes], kind: bytes = b"application/json") -> list[Message]:
    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        length = str(sum(map(len, parts))).encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), (b"content-length", length)]})
        for number, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    receive: Any = None
    await SettingNames(server)({"type": "http"}, receive, send)
    return sent


@pytest.mark.parametrize("parts", [[VLLM_SAYS], [VLLM_SAYS[:50], VLLM_SAYS[50:]]])
async def test_an_error_about_tools_names_our_setting(parts: list[bytes]) -> None:
    start, body = await through(400, parts)
    assert body["body"] == b'{"error": {"message": "\\"auto\\" tool choice requires the setting actor.tool_call_parser to be set"}}'
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()


async def test_answers_streams_and_large_errors_are_the_bytes_that_vllm_sent() -> None:
    large = [b"--max-model-len " * 3, b"x" * LARGEST_BYTES, b"--max-model-len"]
    for status, parts, kind in ((200, [VLLM_SAYS], b"application/json"), (400, [VLLM_SAYS], b"text/plain"), (400, large, b"application/json")):
        start, *bodies = await through(status, parts, kind)
        assert b"".join(message["body"] for message in bodies) == b"".join(parts)
        assert dict(start["headers"])[b"content-length"] == str(sum(map(len, parts))).encode()


def test_every_setting_named_exists_and_every_flag_is_one_that_we_give(tmp_path: Path) -> None:
    given = arguments(ActorSettings(tool_call_parser="hermes", media_hosts=("media.example.com",)), tmp_path, "default")
    for flag, told in SETTINGS.items():
        assert told.removeprefix("the setting actor.") in ActorSettings.model_fields
        assert [part for part in re.findall(r"--[\w-]+", flag) if part not in given] == []
    assert in_our_words(b"--max-model-length") == b"--max-model-length", "another word"
