"""Reads a client's request from OpenAI's JSON. Pure; it never makes a request fail."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from actor.capture.client_response import chat_call
from streams.core.event_decoding import MOST_LEVELS, nested_too_deeply
from streams.core.events import Message
from streams.core.person_ids import plain_id

Api = Literal["chat", "completion", "response"]
APIS: dict[str, Api] = {"/v1/chat/completions": "chat", "/v1/completions": "completion", "/v1/responses": "response"}
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "seed", "stop", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "logit_bias", "tool_choice", "response_format",
)  # fmt: skip
NUMBERS: dict[str, TypeAdapter[Any]] = (
    dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"), TypeAdapter(float))
    | dict.fromkeys(("top_k", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "seed"), TypeAdapter(int))
    | {"use_beam_search": TypeAdapter(bool)}
)  # fmt: skip
"""Fields that vLLM reads by pydantic's rules: ``"2"`` is 2, and ``"false"`` is false."""
REPLY_CHARACTERS = 20_000
NO = frozenset({"off", "no", "false", "0", "none", "never"})


@dataclass(frozen=True)
class ClientRequest:
    """A request for answers."""

    api: Api
    body: Mapping[str, Any]
    user_id: str | None
    conversation_id: str | None
    declined: bool = False
    """The client sent ``x-tidemill-capture: off``: the answer becomes no episode."""
    may_assign: bool = True
    """False: what the client says of conversations and people counts for nothing in the draw of a canary."""

    @property
    def choices_per_prompt(self) -> int:
        n = self._read("n")
        return n if isinstance(n, int) and n > 0 else 1

    def _read(self, name: str) -> Any:
        """A field as the engine reads it; as it was sent where the engine refuses it."""
        value = self.body.get(name)
        try:
            return value if value is None or name not in NUMBERS else NUMBERS[name].validate_python(value)
        except ValidationError:
            return value

    @property
    def prompts(self) -> list[Any]:
        """A completion's prompts: text, or token ids, or a list of either."""
        prompt = self.body.get("prompt")
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            return prompt
        return [prompt]

    @property
    def answers(self) -> int:
        """Number of answers to this request."""
        return self.choices_per_prompt * (len(self.prompts) if self.api == "completion" else 1)

    @property
    def capturable(self) -> bool:
        """Beam search makes many internal requests; its beams are not answers to anybody."""
        return not self._read("use_beam_search")

    @property
    def kept(self) -> bool:
        """Whether its answers become episodes."""
        return self.capturable and not self.declined

    @cached_property
    def too_deep(self) -> bool:
        """True when the request is nested too deeply for any event."""
        return nested_too_deeply(dict(self.body), MOST_LEVELS - 5)  # an event may wrap what it says once or twice

    def messages(self, index: int) -> tuple[Message, ...]:
        """The messages before answer ``index``."""
        if self.api != "completion":
            return tuple(Message.model_validate(message) for message in self.said)
        prompt = self.prompts[min(index // self.choices_per_prompt, len(self.prompts) - 1)]
        return (Message(role="user", content=prompt if isinstance(prompt, str) else None),)

    @property
    def conversation_key(self) -> str | None:
        """What a canary is sticky by on every replica alike: the conversation, where the client names it; else who asks, and how their
        conversation began; else None. None also where the client may not choose: it could try names until it is on the side that it wants."""
        if not self.may_assign:
            return None
        if self.conversation_id is not None:
            return f"conversation {self.conversation_id}"
        if self.user_id is None:
            return None
        first = self.prompts[0] if self.api == "completion" else next((m.get("content") for m in self.said if m.get("role") == "user"), None)
        return f"user {self.user_id} {json.dumps(first)}"

    @property
    def reply(self) -> str | None:
        """The person's reply to the last answer: the text of the messages after it. None when there is none."""
        spoken: list[str] = []
        for message in reversed(self.said):
            if message.get("role") == "assistant":
                break
            if message.get("role") == "user":
                spoken.append(text_of(message.get("content")))
        return "\n".join(reversed(spoken)).strip()[:REPLY_CHARACTERS] or None

    @cached_property
    def said(self) -> list[dict[str, Any]]:
        """The messages of a chat. For the Responses API: its instructions and input items in the shape of a chat."""
        if self.api == "chat":
            said = self.body.get("messages")
            return [message for message in said if isinstance(message, dict) and "role" in message] if isinstance(said, list) else []
        if self.api == "completion":
            return []
        given, rules = self.body.get("input"), self.body.get("instructions")
        begun: list[dict[str, Any]] = [{"role": "system", "content": rules}] if isinstance(rules, str) else []
        if isinstance(given, str):
            return [*begun, {"role": "user", "content": given}]
        return begun + _as_chat(given) if isinstance(given, list) else begun

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        tools = self.body.get("tools")
        return tuple(tool for tool in tools if isinstance(tool, dict)) if isinstance(tools, list) else ()

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """What the chat template is told besides messages and tools; thinking follows from the effort where nothing else says it, as in vLLM."""
        given, reasoning = self.body.get("chat_template_kwargs"), self.body.get("reasoning")
        kwargs = dict(given) if isinstance(given, dict) else {}
        effort = self.body.get("reasoning_effort") if self.api == "chat" else reasoning.get("effort") if isinstance(reasoning, dict) else None
        told = {"documents": self.body.get("documents") if self.api == "chat" else None, "reasoning_effort": effort}
        if effort is not None and "enable_thinking" not in kwargs:
            told["enable_thinking"] = effort != "none"
        return kwargs | {name: value for name, value in told.items() if value is not None and value != "auto"}

    @property
    def unrenderable(self) -> str | None:
        """Why nobody can render its prompt again from messages, tools and ``chat_template_kwargs``."""
        if self.body.get("chat_template"):
            return "own_template"
        if self.body.get("continue_final_message") or self.body.get("add_generation_prompt") is False:
            return "continued"
        return "truncated" if self.body.get("truncate_prompt_tokens") else None

    @property
    def sampling(self) -> dict[str, Any]:
        return {name: self._read(name) for name in SAMPLING if self.body.get(name) is not None}


def declines_capture(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether ``x-tidemill-capture`` says no: any of several such headers, or of the words in one, as proxies join them."""
    said = (word for name, value in headers if name.lower() == b"x-tidemill-capture" for word in value.decode("latin-1").split(","))
    return any(word.strip().strip('"').lower() in NO for word in said)


def asked_by(body: Mapping[str, Any]) -> str | None:
    """Who asks, by the names that clients of OpenAI's API have for it: ``user``, its newer ``safety_identifier``, or ``metadata.user_id``."""
    metadata = body.get("metadata")
    given = (body.get("user"), body.get("safety_identifier"), metadata.get("user_id") if isinstance(metadata, dict) else None)
    return next((named for value in given if (named := plain_id(value)) is not None), None)


def _as_chat(items: list[Any]) -> list[dict[str, Any]]:
    """The input of the Responses API as chat messages: text and tool calls of one turn become one message."""
    said: list[dict[str, Any]] = []
    for item in items:
        match item:
            case {"type": "function_call"}:
                if not said or said[-1]["role"] != "assistant":
                    said.append({"role": "assistant", "content": None})
                said[-1]["tool_calls"] = [*said[-1].get("tool_calls", ()), chat_call(item)]
            case {"type": "function_call_output"}:
                said.append({"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")})
            case {"role": _}:
                said.append(dict(item))
    return said


def is_text(content: object) -> bool:
    """True for text only: a string, text parts, or nothing."""
    parts = content if isinstance(content, list) else []
    return not isinstance(content, dict) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts)


def text_of(content: object) -> str:
    """The text of a message's content, its parts joined."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""
