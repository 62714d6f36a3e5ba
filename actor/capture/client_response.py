"""Reads the answer that a client received from OpenAI's JSON: text and tool calls by choice, for all three APIs, streamed or not. Pure."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ClientResponse:
    """One answer as the client received it."""

    text: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """In the shape of chat completions, for any API."""


def read_response(response: bytes, streamed: bool) -> dict[int, ClientResponse]:
    """Answers by choice. Empty when the response is malformed."""
    try:
        if not streamed:
            return _whole(json.loads(response))
        return _streamed(list(_events(response)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _events(response: bytes) -> Iterator[dict[str, Any]]:
    for line in response.split(b"\n"):
        if line.startswith(b"data: ") and line != b"data: [DONE]":
            yield json.loads(line[6:])


def _whole(response: dict[str, Any]) -> dict[int, ClientResponse]:
    if "output" in response:
        return {0: _of_response(response)}
    messages = {choice["index"]: choice["message"] for choice in response["choices"]}
    return {index: ClientResponse(message.get("content") or "", list(message.get("tool_calls") or ())) for index, message in messages.items()}


def _of_response(response: dict[str, Any]) -> ClientResponse:
    """What the items of a response say."""
    told = ClientResponse()
    for item in response["output"]:
        if item.get("type") == "message":
            told.text += "".join(part.get("text") or "" for part in item.get("content") or ())
        elif item.get("type") == "function_call":
            told.tool_calls.append(chat_call(item))
    return told


def chat_call(item: dict[str, Any]) -> dict[str, Any]:
    """A response's function call in the shape of chat completions."""
    return {"id": item.get("call_id"), "type": "function", "function": {"name": item.get("name") or "", "arguments": item.get("arguments") or ""}}


def _streamed(events: list[dict[str, Any]]) -> dict[int, ClientResponse]:
    for event in events:
        if event.get("type") in ("response.completed", "response.incomplete"):
            return {0: _of_response(event["response"])}
    found: dict[int, ClientResponse] = {}
    for event in events:
        for choice in event.get("choices", ()):
            delta, told = choice.get("delta") or {}, found.setdefault(choice["index"], ClientResponse())
            told.text += delta.get("content") or ""
            for part in delta.get("tool_calls") or ():
                while len(told.tool_calls) <= part["index"]:
                    told.tool_calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
                call = told.tool_calls[part["index"]]
                call["id"] = part.get("id") or call["id"]
                for name in ("name", "arguments"):
                    call["function"][name] += (part.get("function") or {}).get(name) or ""
    return found
