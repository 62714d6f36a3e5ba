"""Reads the answer that a client received from OpenAI's JSON: text and tool calls by choice, for all three APIs, streamed or not. Pure."""

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ClientResponse:
    """One answer as the client received it."""

    text: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """In the shape of chat completions, for any API."""


class ResponseReader:
    """Reads a response while it passes. Of a streamed one it keeps what the events say, not their bytes, so none is ever too long to be read."""

    def __init__(self, streamed: bool) -> None:
        self._streamed, self._rest = streamed, bytearray()
        self._found: dict[int, _Growing] = {}
        self._whole: dict[int, ClientResponse] | None = None
        self._malformed = False

    def feed(self, body: bytes) -> None:
        """Take the next bytes. Never raises."""
        self._rest += body
        if not self._streamed:
            return
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        for line in lines:
            self._take(bytes(line))

    def answers(self) -> dict[int, ClientResponse]:
        """Answers by choice. Empty when the response is malformed."""
        if self._streamed:
            self._take(bytes(self._rest))
            self._rest = bytearray()
        try:
            if self._streamed:
                told = {index: growing.told() for index, growing in self._found.items()} if self._whole is None else self._whole
                return {} if self._malformed else told
            return _whole(json.loads(self._rest)) if self._rest else {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def _take(self, line: bytes) -> None:
        if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
            return
        try:
            event = json.loads(line[6:])
            if event.get("type") in ("response.completed", "response.incomplete"):
                self._whole = {0: _of_response(event["response"])}
            else:
                _add(event, self._found)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._malformed = True


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


@dataclass
class _Growing:
    """One choice of a stream, in pieces: adding to a text again and again would copy it each time."""

    text: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def told(self) -> ClientResponse:
        calls = [
            {"id": call["id"], "type": "function", "function": {"name": "".join(call["name"]), "arguments": "".join(call["arguments"])}}
            for call in self.calls
        ]
        return ClientResponse("".join(self.text), calls)


def _add(event: dict[str, Any], found: dict[int, _Growing]) -> None:
    """One event of a streamed chat or completion."""
    for choice in event.get("choices", ()):
        delta, growing = choice.get("delta") or {}, found.setdefault(choice["index"], _Growing())
        growing.text.append(delta.get("content") or "")
        for part in delta.get("tool_calls") or ():
            while len(growing.calls) <= part["index"]:
                growing.calls.append({"id": None, "name": [], "arguments": []})
            call = growing.calls[part["index"]]
            call["id"] = part.get("id") or call["id"]
            for name in ("name", "arguments"):
                call[name].append((part.get("function") or {}).get(name) or "")
