"""A prompt with everything that its rendering depends on, in the form in which chat templates take it; and an answer as one text.

An answer may be learned from only under the prompt that led to it. That is what the chat template makes of messages, tools and its own arguments
(``enable_thinking``), so all three are kept, and given to the template as vLLM gives them: tools as full definitions, arguments of calls as objects,
parts of a text joined by line breaks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

from streams.core.values import Message

Tools = tuple[dict[str, Any], ...]
RESERVED = frozenset({
    "conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation",
    "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
})  # fmt: skip
"""Arguments of the rendering itself. A client's ``chat_template_kwargs`` do not reach them."""


@dataclass(frozen=True)
class ChatPrompt(Sequence[Message]):
    """Messages with the tools that were offered and what the chat template was told. As a sequence it is its messages."""

    messages: tuple[Message, ...]
    tools: Tools = ()
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        return self.messages[index]

    def __len__(self) -> int:
        return len(self.messages)


Prompt = tuple[Message, ...] | ChatPrompt
"""Messages alone, or with what else decides their rendering."""


def prompt_of(messages: Sequence[Message], tools: Tools = (), chat_template_kwargs: Mapping[str, Any] | None = None) -> Prompt:
    """The prompt of these parts: the messages alone where there is nothing else."""
    plain = tuple(messages)
    return ChatPrompt(plain, tools, dict(chat_template_kwargs or {})) if tools or chat_template_kwargs else plain


def with_messages(prompt: Sequence[Message], messages: Sequence[Message]) -> Prompt:
    """Other messages, with the tools and the arguments of ``prompt``."""
    return ChatPrompt(tuple(messages), prompt.tools, prompt.chat_template_kwargs) if isinstance(prompt, ChatPrompt) else tuple(messages)


def template_inputs(prompt: Sequence[Message]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What a chat template is given: the turns, and its named arguments (``tools`` among them where there are any)."""
    turns = [_turn(message) for message in prompt]
    if not isinstance(prompt, ChatPrompt):
        return turns, {}
    arguments = {name: value for name, value in prompt.chat_template_kwargs.items() if name not in RESERVED}
    return turns, arguments | ({"tools": tools} if (tools := [_tool(tool) for tool in prompt.tools]) else {})


def content_key(prompt: Sequence[Message]) -> str:
    """Equal for prompts that are rendered alike. Of messages alone it is what pools have always used."""
    said = [_said(message) for message in prompt]
    if not isinstance(prompt, ChatPrompt):
        return json.dumps(said)
    return json.dumps([said, list(prompt.tools), prompt.chat_template_kwargs], sort_keys=True, default=str)


def has_media(messages: Sequence[Message]) -> bool:
    """True when a message holds anything but text: an image, a sound, a file."""
    return any(not _is_text(part) for m in messages if not (isinstance(m.content, str) or m.content is None) for part in m.content)


def whole_answer(text: str, tool_calls: Sequence[Mapping[str, Any]] | None) -> str:
    """An answer as one text: what was said, then each tool call in the form in which most open models write it."""
    calls = [f"<tool_call>\n{json.dumps(_named(call), ensure_ascii=False)}\n</tool_call>" for call in tool_calls or ()]
    return "\n".join([*([text] if text else []), *calls])


def call_names(tool_calls: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The functions that were called, in order."""
    return tuple(str(_named(call)["name"]) for call in tool_calls)


class _Told(Protocol):
    """What an event must hold to be rendered again."""

    @property
    def messages(self) -> tuple[Message, ...]: ...
    @property
    def tools(self) -> Tools: ...
    @property
    def chat_template_kwargs(self) -> dict[str, Any]: ...
    @property
    def unrenderable(self) -> str | None: ...
    @property
    def answer(self) -> str: ...
    @property
    def tool_calls(self) -> Tools: ...


class PromptAndAnswer:
    """What episodes and labels have in common: a prompt that can be rendered again, or not, and an answer."""

    @property
    def prompt(self: _Told) -> Prompt:
        """The messages with everything else that their rendering depends on."""
        return prompt_of(self.messages, self.tools, self.chat_template_kwargs)

    @property
    def whole_answer(self: _Told) -> str:
        """The answer with its tool calls, as one text."""
        return whole_answer(self.answer, self.tool_calls)

    @property
    def render_fault(self: _Told) -> str | None:
        """``unrenderable``, also where the messages alone say it (``media``), as in events that are older than that field."""
        return self.unrenderable or ("media" if has_media(self.messages) else None)


def left_out(prompt: Sequence[Message], rendered: str) -> list[str]:
    """The tools and the calls that a template did not write into its prompt, as texts: small models' templates often know neither. A tool or a call
    counts as written where its name is."""
    offered = [_tool(tool) for tool in prompt.tools] if isinstance(prompt, ChatPrompt) else []
    tools = [json.dumps(tool["function"], ensure_ascii=False) for tool in offered if str(tool["function"]["name"]) not in rendered]
    calls = [whole_answer("", [call]) for message in prompt for call in message.tool_calls or () if call_names([call])[0] not in rendered]
    return [*tools, *calls]


def _said(message: Message) -> tuple[str, ...]:
    """Role and text, and the calls of a message that has any."""
    calls = (whole_answer("", message.tool_calls),) if message.tool_calls else ()
    return (message.role, message.text, *calls)


def _turn(message: Message) -> dict[str, Any]:
    """A message as templates read it."""
    extra = message.model_extra or {}
    turn: dict[str, Any] = {"role": message.role, "content": _text(message)}
    if message.role == "assistant" and message.tool_calls:
        turn["tool_calls"] = [{**call, "function": _named(call)} for call in message.tool_calls]
    if message.role == "assistant" and isinstance(thought := extra.get("reasoning"), str):
        turn["reasoning"] = turn["reasoning_content"] = thought
    if message.role == "tool" and message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if isinstance(name := extra.get("name"), str):
        turn["name"] = name
    return turn


def _text(message: Message) -> str:
    if isinstance(message.content, str) or message.content is None:
        return message.text
    return "\n".join(part["text"] for part in message.content if _is_text(part))


def _is_text(part: Mapping[str, Any]) -> bool:
    return str(part.get("type", "text")).endswith("text") and isinstance(part.get("text"), str)


def _named(call: Mapping[str, Any]) -> dict[str, Any]:
    """Name and arguments of a call. Arguments that are no JSON object count as none, as with vLLM."""
    function = call.get("function")
    told: Mapping[str, Any] = function if isinstance(function, dict) else call
    arguments = told.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    return {"name": told.get("name", ""), "arguments": arguments if isinstance(arguments, dict) else {}}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as vLLM gives it to templates, whether it came in the shape of the chat or of the Responses API."""
    function = tool.get("function")
    told: Mapping[str, Any] = function if isinstance(function, dict) else tool
    known = {name: told.get(name) for name in ("name", "description", "parameters")}
    return {"type": "function", "function": known | ({"strict": told["strict"]} if told.get("strict") is not None else {})}
