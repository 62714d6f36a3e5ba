"""What a client asked for and was told, read from OpenAI's JSON: pure, and never in the way of the answer."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from streams.events import Message

Api = Literal["chat", "completion", "response"]
APIS: dict[str, Api] = {"/v1/chat/completions": "chat", "/v1/completions": "completion", "/v1/responses": "response"}
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "seed", "stop", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "logit_bias", "tool_choice", "response_format",
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Asked:
    """A request for answers."""

    api: Api
    body: Mapping[str, Any]
    user_id: str | None
    conversation_id: str | None
    declined: bool = False
    """The client sent ``x-tidemill-capture: off``: the answer becomes no episode."""

    @property
    def choices_per_prompt(self) -> int:
        n = self.body.get("n")
        return n if isinstance(n, int) and n > 0 else 1

    @property
    def prompts(self) -> list[Any]:
        """A completion's prompts: text, or token ids, or a list of either."""
        prompt = self.body.get("prompt")
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            return prompt
        return [prompt]

    @property
    def answers(self) -> int:
        """How many answers it will get."""
        return self.choices_per_prompt * (len(self.prompts) if self.api == "completion" else 1)

    @property
    def capturable(self) -> bool:
        """Beam search answers by way of many hidden requests; its beams are nobody's answer."""
        return not self.body.get("use_beam_search")

    def messages(self, index: int) -> tuple[Message, ...]:
        """What was said before answer ``index``."""
        if self.api != "completion":
            return tuple(Message.model_validate(message) for message in self._said)
        prompt = self.prompts[min(index // self.choices_per_prompt, len(self.prompts) - 1)]
        return (Message(role="user", content=prompt if isinstance(prompt, str) else None),)

    def conversation_key(self, episode_id: str) -> str:
        """What a canary is sticky by: the conversation, where the client names it; else who asks, and how their conversation began; else
        nothing but this one request."""
        if self.conversation_id is not None:
            return f"conversation {self.conversation_id}"
        if self.user_id is None:
            return f"episode {episode_id}"
        first = self.prompts[0] if self.api == "completion" else next((m.get("content") for m in self._said if m.get("role") == "user"), None)
        return f"user {self.user_id} {json.dumps(first)}"

    @property
    def turn(self) -> int:
        """Answers given before in this conversation."""
        return sum(message.get("role") == "assistant" for message in self._said)

    @property
    def _said(self) -> list[dict[str, Any]]:
        """The messages of a chat; of a response its instructions and what has a role in its input."""
        if self.api == "chat":
            said = self.body.get("messages")
        else:
            given, rules = self.body.get("input"), self.body.get("instructions")
            said = [{"role": "system", "content": rules}] if isinstance(rules, str) else []
            said += [{"role": "user", "content": given}] if isinstance(given, str) else given if isinstance(given, list) else []
        return [message for message in said if isinstance(message, dict) and "role" in message] if isinstance(said, list) else []

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        tools = self.body.get("tools")
        return tuple(tool for tool in tools if isinstance(tool, dict)) if isinstance(tools, list) else ()

    @property
    def sampling(self) -> dict[str, Any]:
        return {name: self.body[name] for name in SAMPLING if self.body.get(name) is not None}


def clean_id(value: object) -> str | None:
    """An id that fits an event, or None: what a client sends must not cost the episode."""
    return (_CONTROL.sub("", value)[:200] or None) if isinstance(value, str) else None


def tool_calls(response: bytes, streamed: bool) -> dict[int, tuple[str, tuple[dict[str, Any], ...]]]:
    """Content and tool calls by choice, as the client got them; empty where the response is not what it should be."""
    try:
        return _streamed(response) if streamed else _whole(json.loads(response))
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _whole(response: dict[str, Any]) -> dict[int, tuple[str, tuple[dict[str, Any], ...]]]:
    return {
        choice["index"]: (choice["message"].get("content") or "", tuple(choice["message"].get("tool_calls") or ())) for choice in response["choices"]
    }


def _streamed(response: bytes) -> dict[int, tuple[str, tuple[dict[str, Any], ...]]]:
    texts: dict[int, str] = {}
    calls: dict[int, dict[int, dict[str, Any]]] = {}
    for line in response.split(b"\n"):
        if not line.startswith(b"data: ") or line == b"data: [DONE]":
            continue
        for choice in json.loads(line[6:]).get("choices", ()):
            delta, index = choice.get("delta") or {}, choice["index"]
            texts[index] = texts.get(index, "") + (delta.get("content") or "")
            for part in delta.get("tool_calls") or ():
                call = calls.setdefault(index, {}).setdefault(
                    part["index"], {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
                )
                call["id"] = part.get("id") or call["id"]
                for field in ("name", "arguments"):
                    call["function"][field] += (part.get("function") or {}).get(field) or ""
    return {index: (text, tuple(call for _, call in sorted(calls.get(index, {}).items()))) for index, text in texts.items()}
