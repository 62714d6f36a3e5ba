"""What a client was told, put together as the client would."""

import json
from typing import Any

import pytest

from actor.capture.client_response import ClientResponse, read_response

CALL = {"id": "call-1", "type": "function", "function": {"name": "sail", "arguments": '{"to": "sea"}'}}
RESPONSE = {"output": [
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "We"}, {"type": "output_text", "text": "ll"}]},
    {"type": "function_call", "call_id": "call-1", "name": "sail", "arguments": '{"to": "sea"}'},
]}  # fmt: skip


def stream(*events: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def test_streamed_tool_calls_of_a_chat() -> None:
    parts: list[dict[str, Any]] = [
        {"index": 0, "delta": {"role": "assistant", "content": "Well"}},
        {"index": 1, "delta": {"content": "No"}},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "call-1", "function": {"name": "sail", "arguments": '{"to": '}}]}},
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '"sea"}'}}]}},
    ]
    assert read_response(stream(*({"choices": [part]} for part in parts)), streamed=True) == {
        0: ClientResponse("Well", [CALL]),
        1: ClientResponse("No"),
    }


def test_a_whole_chat() -> None:
    choices = [{"index": 0, "message": {"content": None, "tool_calls": [CALL]}}, {"index": 1, "message": {"content": "No"}}]
    assert read_response(json.dumps({"choices": choices}).encode(), streamed=False) == {0: ClientResponse("", [CALL]), 1: ClientResponse("No")}


@pytest.mark.parametrize("last", ["response.completed", "response.incomplete"])
def test_a_response_is_told_in_the_shape_of_a_chat_streamed_or_not(last: str) -> None:
    assert read_response(json.dumps(RESPONSE).encode(), streamed=False) == {0: ClientResponse("Well", [CALL])}
    events = stream({"type": "response.output_text.delta", "delta": "We"}, {"type": last, "response": RESPONSE})
    assert read_response(events, streamed=True) == {0: ClientResponse("Well", [CALL])}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("response", [b"<html>", b"{}", b"[1]", b'data: {"choices": [3]}', b'data: {"choices": [{"ind', b"\xff"])
def test_what_cannot_be_read_is_no_answer(response: bytes, streamed: bool) -> None:
    assert read_response(response, streamed) == {}
