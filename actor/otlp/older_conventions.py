"""Spans by other conventions, told by today's names: what was said in events (OpenTelemetry before 1.37), as ``gen_ai.prompt`` and
``gen_ai.completion`` (before 1.28, and OpenLLMetry's numbered attributes), or as OpenInference's ``llm.…``. Pure.

Sources: semantic conventions for generative AI 1.27 to 1.36; OpenLLMetry's and OpenInference's lists of attributes.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from actor.otlp.reported_span import Span, SpanEvent

ASKED, ANSWERED, OPERATION = "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.operation.name"
OTHER_NAMES = {
    "llm.request.type": OPERATION,
    "llm.model_name": "gen_ai.request.model",
    "traceloop.association.properties.user_id": "user.id",
    "traceloop.association.properties.session_id": "session.id",
    "gen_ai.response.finish_reason": "gen_ai.response.finish_reasons",
}
"""Other names of single attributes."""
OPERATIONS = {"completion": "text_completion", "LLM": "chat", "embedding": "embeddings"}
"""Other words for an operation."""
_SAID_BY = {f"gen_ai.{role}.message": role for role in ("system", "user", "assistant", "tool")}
_NUMBERED = {
    ASKED: re.compile(r"(?:gen_ai\.prompt|llm\.input_messages)\.(\d{1,4})\.(?:message\.)?(.+)"),
    ANSWERED: re.compile(r"(?:gen_ai\.completion|llm\.output_messages)\.(\d{1,4})\.(?:message\.)?(.+)"),
}
_CALL = re.compile(r"tool_calls\.(\d{1,3})\.(?:tool_call\.)?(?:function\.)?(id|name|arguments)")


def by_todays_names(span: Span) -> Span:
    """The span with what older and other conventions say of it under today's names; the same object where there is nothing of theirs."""
    told = dict(span.attributes)
    for event in span.events:  # today's names, on an event
        told |= {name: value for name, value in event.attributes.items() if name in (ASKED, ANSWERED) and name not in told}
    for name, ours in OTHER_NAMES.items():
        if name in told and ours not in told:
            told[ours] = told[name]
    if OPERATION not in told and told.get("openinference.span.kind") == "LLM":
        told[OPERATION] = "LLM"
    if isinstance(operation := told.get(OPERATION), str):
        told[OPERATION] = OPERATIONS.get(operation, operation)
    for name in (ASKED, ANSWERED):
        if name not in told and (said := _numbered(told, _NUMBERED[name]) or _as_one(told, name) or _of_events(span.events, name)):
            told[name] = said
    return span if told == span.attributes else replace(span, attributes=told)


def _numbered(told: Mapping[str, Any], pattern: re.Pattern[str]) -> list[dict[str, Any]]:
    """``gen_ai.prompt.0.role``, ``gen_ai.prompt.0.content`` and so on."""
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    calls: dict[int, dict[int, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for name, value in told.items():
        if (place := pattern.fullmatch(name)) is None:
            continue
        number = int(place[1])
        if (call := _CALL.fullmatch(place[2])) is not None:
            calls[number][int(call[1])][call[2]] = value
        elif place[2] in ("role", "content", "finish_reason", "tool_call_id"):
            found[number][place[2]] = value
    for number, by_place in calls.items():
        found[number]["tool_calls"] = [_call(by_place[place]) for place in sorted(by_place)]
    return [_message(found[number]) for number in sorted(found)]


def _as_one(told: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """``gen_ai.prompt`` and ``gen_ai.completion``: JSON of messages, or plain text."""
    older = "gen_ai.prompt" if name == ASKED else "gen_ai.completion"
    return _messages_in(told.get(older), "user" if name == ASKED else "assistant")


def _of_events(events: Iterable[SpanEvent], name: str) -> list[dict[str, Any]]:
    """What events say: one each (``gen_ai.user.message``, ``gen_ai.choice``), or all in one (``gen_ai.content.prompt``)."""
    found: list[dict[str, Any]] = []
    for event in events:
        body = {**event.attributes, **_object(event.attributes.get("gen_ai.event.content"))}
        if event.name in ("gen_ai.content.prompt", "gen_ai.content.completion"):
            found += _as_one(body, name)
        elif name == ANSWERED and event.name == "gen_ai.choice":
            inner = _object(body.get("message")) or ({"content": body["message"]} if isinstance(body.get("message"), str) else {})
            reason = {"finish_reason": body["finish_reason"]} if "finish_reason" in body else {}
            found.append(_message({"role": "assistant", **body, **inner, **reason}))
        elif name == ASKED and (role := _SAID_BY.get(event.name)) is not None:
            found.append(_message({"role": role, **body} | ({"tool_call_id": body.get("id")} if role == "tool" else {})))
    return found


def _message(said: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's shape, with what of it is known."""
    content, calls = said.get("content"), said.get("tool_calls")
    parts = _parsed(content) if isinstance(content, str) and content.lstrip()[:1] == "[" else content
    content = parts if isinstance(parts, list) and parts and all(isinstance(part, dict) and "type" in part for part in parts) else content
    calls = _parsed(calls) if isinstance(calls, str) else calls
    kept = {name: said[name] for name in ("finish_reason", "tool_call_id") if said.get(name) is not None}
    return {"role": said.get("role") or "user", "content": content, **({"tool_calls": calls} if calls else {}), **kept}


def _messages_in(value: Any, role: str) -> list[dict[str, Any]]:
    tree = _parsed(value) if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") else value
    tree = tree.get("messages", [tree]) if isinstance(tree, dict) else tree
    if isinstance(tree, list) and tree and all(isinstance(each, dict) and ("content" in each or "role" in each) for each in tree):
        return [_message({"role": role, **each}) for each in tree]
    return [{"role": role, "content": value}] if isinstance(value, str) and value else []


def _call(told: Mapping[str, Any]) -> dict[str, Any]:
    arguments = told.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": told.get("id"), "type": "function", "function": {"name": told.get("name"), "arguments": text}}


def _object(value: Any) -> dict[str, Any]:
    tree = _parsed(value) if isinstance(value, str) else value
    return tree if isinstance(tree, dict) else {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
