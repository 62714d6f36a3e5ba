"""OTLP's JSON, read by hand: protobuf's own reader refuses the whole export because of one attribute.

The specification has lowerCamelCase names and hexadecimal ids; protobuf's own names and base64 ids, as some exporters write them, are read too.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from actor.otlp.reported_span import STATUS_ERROR, Span, SpanEvent
from streams.core.person_ids import whole_text


def spans_of_json(body: bytes) -> Iterator[Span]:
    """The spans of an export. Raises ValueError or RecursionError where there is no list of spans."""
    for by_resource in _objects(_of(_parsed(body), "resourceSpans", "resource_spans")):
        resource = _json_attributes(_get(by_resource.get("resource"), "attributes"))
        for by_scope in _objects(_of(by_resource, "scopeSpans", "scope_spans")):
            for span in _listed(by_scope.get("spans")):
                try:
                    yield _span_of_json(whole_text(span), resource)
                except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                    yield Span("", "", "", {"span": span}, resource=resource, unreadable=f"{type(error).__name__}: {error}"[:300])


def _parsed(body: bytes) -> Any:
    """Also where a character is cut, or a line's end stands unescaped within a text."""
    try:
        return json.loads(body, strict=False)
    except UnicodeDecodeError:
        return json.loads(body.decode(errors="replace"), strict=False)


def _span_of_json(span: Any, resource: Mapping[str, Any]) -> Span:
    """Raises ValueError and its kin."""
    started, ended = _of(span, "startTimeUnixNano", "start_time_unix_nano"), _of(span, "endTimeUnixNano", "end_time_unix_nano")
    events = [each for each in _listed(span.get("events")) if isinstance(each, dict)]
    return Span(
        _id(_of(span, "traceId", "trace_id"), 16), _id(_of(span, "spanId", "span_id"), 8), str(span.get("name") or ""),
        _json_attributes(span.get("attributes")), _whole_number(started), _whole_number(ended),
        _get(span.get("status"), "code") in (STATUS_ERROR, str(STATUS_ERROR), "STATUS_CODE_ERROR"), resource,
        tuple(SpanEvent(str(each.get("name") or ""), _json_attributes(each.get("attributes"))) for each in events),
    )  # fmt: skip


def _of(tree: Any, name: str, older: str) -> Any:
    if not isinstance(tree, dict):
        raise ValueError(f"{type(tree).__name__} in place of an object")
    return tree.get(name, tree.get(older))


def _get(tree: Any, name: str) -> Any:
    return tree.get(name) if isinstance(tree, dict) else None


def _listed(value: Any) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise ValueError(f"{type(value).__name__} in place of a list")
    return value or []


def _objects(value: Any) -> list[dict[str, Any]]:
    found = _listed(value)
    if not all(isinstance(each, dict) for each in found):
        raise ValueError("something else in a list of objects")
    return found


def _id(value: Any, size: int) -> str:
    """An id in hexadecimal. What is neither that nor base64 is hashed: that it is malformed must not cost the answer."""
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        return bytes.fromhex(text).hex()
    except ValueError:
        pass
    try:
        if len(found := base64.b64decode(text, validate=True)) == size:
            return found.hex()
    except (binascii.Error, ValueError):
        pass
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[: 2 * size]


def _whole_number(value: Any) -> int:
    """A 64-bit number, which JSON may write as text. Raises ValueError."""
    if value is None or value == "":
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{type(value).__name__} in place of a number")
    try:
        return int(value)
    except ValueError:
        return int(float(value))


def _json_attributes(pairs: Any) -> dict[str, Any]:
    """Attributes by name. One that cannot be read is None: it must not cost the span."""
    found: dict[str, Any] = {}
    for pair in pairs if isinstance(pairs, list) else ():
        if isinstance(pair, dict) and isinstance(pair.get("key"), str):
            try:
                found[pair["key"]] = _json_value(pair.get("value"))
            except (ValueError, TypeError, OverflowError):
                found[pair["key"]] = None
    return found


def _json_value(value: Any) -> Any:
    """An AnyValue as plain Python. Raises ValueError and its kin."""
    match value:
        case {"stringValue": said} | {"string_value": said}:
            return said if isinstance(said, str) else json.dumps(said)
        case {"intValue": number} | {"int_value": number}:
            return _whole_number(number)
        case {"doubleValue": number} | {"double_value": number}:
            return float(number)
        case {"boolValue": truth} | {"bool_value": truth}:
            return truth if isinstance(truth, bool) else str(truth).lower() == "true"
        case {"arrayValue": {"values": [*inner]}} | {"array_value": {"values": [*inner]}}:
            return [_json_value(each) for each in inner]
        case {"arrayValue": _} | {"array_value": _}:
            return []
        case {"kvlistValue": inner} | {"kvlist_value": inner}:
            return _json_attributes(_get(inner, "values"))
        case {"bytesValue": said} | {"bytes_value": said}:
            return base64.b64decode(said)
        case _:
            return None
