"""A span by OpenTelemetry's conventions for generative AI, as the episodes that it tells of. Pure.

Source: semantic conventions for generative AI, "Inference" spans with the content on attributes (``gen_ai.input.messages``,
``gen_ai.output.messages``, ``gen_ai.system_instructions``), as a JSON string or structured. A message that has OpenAI's
``content`` in place of ``parts`` is understood too. ``older_conventions`` brings other names into this form first.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from actor.capture.client_request import Api
from actor.doors.feedback_door import without_prefix
from actor.otlp.reported_span import Span
from streams.core.errors import InvalidEvent
from streams.core.events import Episode
from streams.core.person_ids import plain_id, whole_text

ANSWERS: dict[str, Api] = {"chat": "chat", "generate_content": "chat", "text_completion": "completion"}
"""Operations whose spans are answers to somebody, by the conventions."""
NO_ANSWERS = frozenset({
    "create_agent", "create_memory", "create_memory_store", "delete_memory", "delete_memory_store", "embeddings", "execute_tool", "fetch_response",
    "invoke_agent", "invoke_workflow", "plan", "retrieval", "search_memory", "update_memory", "upsert_memory",
})  # fmt: skip
"""Operations that the conventions know and that are no answers. Values of an instrumentation's own are answers where they carry one."""
SAMPLING = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_tokens": "max_tokens", "seed": "seed", "stop_sequences": "stop",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty", "choice.count": "n",
}  # fmt: skip
OUTCOMES = (
    dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded", "incomplete"), "truncated")
    | dict.fromkeys(("content_filter", "content_filtered", "guardrail_intervened", "safety", "recitation", "pause_turn"), "truncated")
    | dict.fromkeys(("error", "failed", "malformed_function_call"), "failed")
    | dict.fromkeys(("abort", "cancelled", "canceled"), "cancelled")
)
"""Outcome by finish reason, in lower case, as the conventions and the providers write them. What a filter cut off is not a whole answer."""
USER = ("gen_ai.user", "gen_ai.user.id", "enduser.id", "user.id", "enduser.pseudo.id")
CONVERSATION = ("gen_ai.conversation.id", "session.id")
CAPTURED = re.compile(r"(?:chatcmpl-|cmpl-|resp_)?ep-[0-9a-f]{32}(?:-\d+)?")
JSON_BEGINS = '[{"-0123456789tfn'
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NO_CONTENT = (
    "the span carries no gen_ai.input.messages: let the instrumentation record content, for OpenTelemetry's own with"
    " OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental and OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=SPAN_ONLY"
)


def kind_of(span: Span) -> Literal["answer", "captured", "unfinished", "unknown_operation", "other"]:
    """``captured``: an actor of ours gave that answer and has kept it, with its tokens. ``unfinished``: the whole span comes later.
    ``unknown_operation``: an operation that the conventions do not have, of a span without an answer."""
    if span.attributes.get("logfire.span_type") == "pending_span" or "partial.event" in span.attributes:
        return "unfinished"
    operation = span.attributes.get("gen_ai.operation.name")
    operation = None if operation is None else str(operation)
    if operation in NO_ANSWERS:
        return "other"
    if operation not in ANSWERS and "gen_ai.output.messages" not in span.attributes:
        return "other" if operation is None else "unknown_operation"
    return "captured" if CAPTURED.fullmatch(str(span.attributes.get("gen_ai.response.id", ""))) else "answer"


def episodes_of(span: Span, policy: str, tenant: str) -> list[Episode]:
    """One episode for each choice. Raises InvalidEvent: ``no_content``, ``no_answer``, ``not_json`` or ``invalid``.

    An ``adapter`` is the model that answered; none where that is the policy's own name or ``base``.
    """
    told: Mapping[str, Any] = whole_text(dict(span.attributes))
    messages = [*_system(told), *_messages(told, "gen_ai.input.messages")]
    if not messages:
        raise InvalidEvent("no_content", NO_CONTENT)
    error = _text(told.get("error.type")) or ("error" if span.failed else None)
    answers = list(_messages(told, "gen_ai.output.messages"))
    if not answers and error is None:
        raise InvalidEvent("no_answer", "the span carries no gen_ai.output.messages and no error")
    whole_id = plain_id(without_prefix(plain_id(told.get("gen_ai.response.id")) or "")) or f"otel-{span.trace_id}-{span.span_id}"
    model = _text(told.get("gen_ai.response.model")) or _text(told.get("gen_ai.request.model"))
    shared: dict[str, Any] = {
        "policy": policy,
        "tenant": tenant,
        "user_id": _first(told, USER),
        "conversation_id": _first(told, CONVERSATION),
        "turn": sum(message["role"] == "assistant" for message in messages),
        "adapter": None if model in (policy, "base") else model,
        "replica": plain_id(span.resource.get("service.name")),
        "api": ANSWERS.get(str(told.get("gen_ai.operation.name")), "chat"),
        "messages": messages,
        "tools": _listed(told, "gen_ai.tool.definitions"),
        "sampling": {ours: told[f"gen_ai.request.{theirs}"] for theirs, ours in SAMPLING.items() if f"gen_ai.request.{theirs}" in told},
        "error": error,
        "started_at": _time(span.started_ns),
        "ended_at": _time(max(span.started_ns, span.ended_ns) if span.ended_ns else 0),  # a clock that was set back meanwhile costs no answer
    }
    several, reasons = len(answers) > 1, _reasons(told.get("gen_ai.response.finish_reasons"))
    episodes = []
    for index, answer in enumerate(answers or [{}]):
        ended = answer.get("finish_reason") or (reasons[index] if index < len(reasons) else None)
        episodes.append(_episode(shared, {**answer, "finish_reason": ended}, plain_id(f"{whole_id}-{index}") if several else whole_id))
    return episodes


def _episode(shared: Mapping[str, Any], answer: Mapping[str, Any], episode_id: str | None) -> Episode:
    outcome = "failed" if shared["error"] else OUTCOMES.get(str(answer.get("finish_reason")).lower(), "completed")
    if outcome == "failed" and "cancel" in str(shared["error"]).lower():
        outcome = "cancelled"
    fields = {
        **shared,
        "episode_id": episode_id,
        "answer": _said(answer.get("content")),
        "tool_calls": answer.get("tool_calls") or [],
        "outcome": outcome,
    }
    return Episode.decode(json.dumps(fields).encode())


def _reasons(told: Any) -> list[Any]:
    """The finish reasons of a span, by choice; an instrumentation may leave them out of its messages, or write the list as text."""
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except (ValueError, RecursionError):
            return [told]
    return told if isinstance(told, list) else [told] if isinstance(told, str) else []


def _said(content: Any) -> str:
    """The text of an answer. Raises InvalidEvent where it is neither text nor parts of text."""
    parts = [content] if isinstance(content, str) else [] if content is None else content
    if not isinstance(parts, list) or not all(isinstance(part, str | dict) for part in parts):
        raise InvalidEvent("invalid", f"gen_ai.output.messages: an answer's content is {type(content).__name__}, not text or a list of parts")
    return "".join(part if isinstance(part, str) else _text(part.get("text")) or _text(part.get("content")) or "" for part in parts)


def _system(told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The instructions that were given apart from the history."""
    if parts := _listed(told, "gen_ai.system_instructions"):
        yield {"role": "system", "content": _content(parts)}


def _messages(told: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """OpenAI's shape of the messages of an attribute."""
    for message in _listed(told, name):
        role, parts = str(message.get("role", "user")), message.get("parts")
        kept = {"finish_reason": message["finish_reason"]} if message.get("finish_reason") else {}
        if not isinstance(parts, list):
            yield {"role": role, "content": message.get("content"), "tool_calls": message.get("tool_calls"), **kept}
            continue
        parts = [{"type": "text", "content": part} if isinstance(part, str) else part for part in parts if isinstance(part, str | dict)]
        for part in parts:
            if part.get("type") == "tool_call_response":
                said = part.get("response", part.get("result"))
                yield {"role": "tool", "tool_call_id": part.get("id"), "content": said if isinstance(said, str) else json.dumps(said)}
        calls = [_call(part) for part in parts if part.get("type") == "tool_call"]
        said_parts = [part for part in parts if part.get("type") not in ("tool_call", "tool_call_response", "reasoning")]
        if said_parts or calls or not parts:
            yield {"role": role, "content": _content(said_parts), "tool_calls": calls or None, **kept}


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]] | None:
    """Text as one string; parts that are no text beside it where there are any."""
    if all(part.get("type", "text") == "text" for part in parts):
        return "".join(map(_part_text, parts)) if parts else None
    return [{"type": "text", "text": _part_text(part)} if part.get("type") == "text" else part for part in parts]


def _part_text(part: Mapping[str, Any]) -> str:
    content = part.get("content", part.get("text"))
    return content if isinstance(content, str) else "" if content is None else json.dumps(content)


def _call(part: Mapping[str, Any]) -> dict[str, Any]:
    arguments = part.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": part.get("id"), "type": "function", "function": {"name": part.get("name"), "arguments": text}}


def _listed(told: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """An attribute that is a list of objects, structured or as JSON; plain text in place of either is one text. Raises InvalidEvent."""
    found = told.get(name)
    if isinstance(found, str) and found.strip() and found.lstrip()[0] not in JSON_BEGINS:
        found = [found]
    elif isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            raise InvalidEvent("not_json", f"{name} is no JSON; was it cut by a limit on the length of attributes?") from None
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict | str) for each in found):
        raise InvalidEvent("invalid", f"{name} is no list of objects")
    role = "assistant" if name == "gen_ai.output.messages" else "user"
    return [{"role": role, "type": "text", "content": each} if isinstance(each, str) else each for each in found]


def _first(told: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of these attributes that names somebody or something, as text or as a number."""
    return next((named for name in names if (named := plain_id(told.get(name))) is not None), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _time(since_1970_ns: int) -> str:
    if not since_1970_ns:
        raise InvalidEvent("invalid", "the span does not say when it began or ended")
    return (EPOCH + timedelta(microseconds=since_1970_ns // 1000)).isoformat()
