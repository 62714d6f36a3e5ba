"""What a client was told, put together as the client would."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actor.capture.client_response import ClientResponse, ResponseReader

CALL = {"id": "call-1", "type": "function", "function": {"name": "sail", "arguments": '{"to": "sea"}'}}
RESPONSE = {"output": [
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "We"}, {"type": "output_text", "text": "ll"}]},
    {"type": "function_call", "call_id": "call-1", "name": "sail", "arguments": '{"to": "sea"}'},
]}  # fmt: skip


def stream(*events: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def read_response(response: bytes, streamed: bool) -> dict[int, ClientResponse]:
    """A whole response at once."""
    reader = ResponseReader(streamed)
    reader.feed(response)
    return reader.answers()


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


@given(st.lists(st.integers(1, 400), max_size=30))
def test_a_stream_is_read_the_same_however_its_bytes_are_cut(lengths: list[int]) -> None:
    parts = [{"index": 0, "delta": {"content": f"wört {number} "}} for number in range(20)]
    calls = [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "call-1", "function": {"name": "sail", "arguments": '{"to": "sea"}'}}]}}]
    raw, reader = stream(*({"choices": [part]} for part in [*parts, *calls])), ResponseReader(streamed=True)
    for length in lengths:
        reader.feed(raw[:length])
        raw = raw[length:]
    reader.feed(raw)
    assert reader.answers() == {0: ClientResponse("".join(f"wört {number} " for number in range(20)), [CALL])}


def test_no_stream_is_too_long_to_be_read() -> None:
    reader = ResponseReader(streamed=True)
    piece = stream({"choices": [{"index": 0, "delta": {"content": "x" * 1000}}]}).removesuffix(b"data: [DONE]\n\n")
    for _ in range(6000):
        reader.feed(piece)
    reader.feed(stream({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}}]}))
    (answer,) = reader.answers().values()
    assert (len(answer.text), answer.tool_calls[0]["function"]["name"]) == (6_000_000, "f")
