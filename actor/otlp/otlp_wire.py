"""OTLP over HTTP: its two encodings of spans read into one shape, and its answers. The one home of OTLP's protobuf messages.

Source: the OTLP specification 1.x, "OTLP/HTTP". In JSON, ids are hexadecimal (not base64 as protobuf's own JSON has bytes).
"""

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from streams.core.errors import InvalidEvent
from streams.core.person_ids import whole_text

PROTOBUF, JSON = "application/x-protobuf", "application/json"
IDS = ("traceId", "spanId", "parentSpanId")
STATUS_ERROR = 2
GZIP = 16 + zlib.MAX_WBITS


@dataclass(frozen=True)
class Span:
    """One finished span, with what its resource says of the process."""

    trace_id: str
    span_id: str
    name: str
    attributes: Mapping[str, Any]
    started_ns: int = 0
    """Since 1970, as ``ended_ns``."""
    ended_ns: int = 0
    failed: bool = False
    """Its status is ERROR."""
    resource: Mapping[str, Any] = field(default_factory=dict)


class TooLarge(Exception):
    """An export is larger, unpacked, than the limit. Caught by the door alone."""


def unpacked(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """The body without its compression. Raises TooLarge, or InvalidEvent for what is no gzip."""
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise InvalidEvent("not_otlp", f"content-encoding {encoding}: gzip or none")
    whole = bytearray()
    while body:  # a gzip file may have several members, one after the other
        try:
            unpacker = zlib.decompressobj(GZIP)
            whole += unpacker.decompress(body, limit_bytes + 1 - len(whole))
        except zlib.error as error:
            raise InvalidEvent("not_otlp", f"the body is no gzip: {error}") from None
        if len(whole) > limit_bytes:
            raise TooLarge
        if not unpacker.eof:
            raise InvalidEvent("not_otlp", "the gzip body is cut off")
        body = unpacker.unused_data
    return bytes(whole)


def read_spans(body: bytes, content_type: str) -> list[Span]:
    """The spans of an export. Raises InvalidEvent with reason ``not_otlp``."""
    request = ExportTraceServiceRequest()
    try:
        if content_type == JSON:
            tree = _ids_as_bytes(whole_text(json.loads(body)))
            if not isinstance(tree, dict):
                raise ValueError("no object")
            json_format.ParseDict(tree, request, ignore_unknown_fields=True)
        else:
            request.ParseFromString(body)
    except (DecodeError, json_format.Error, ValueError, RecursionError) as error:
        raise InvalidEvent("not_otlp", f"the body is no ExportTraceServiceRequest in {content_type}: {type(error).__name__}") from None
    return list(_spans(request))


def accepted(content_type: str, refused: int, why: str) -> bytes:
    """The answer to an export that was taken, with how many spans were not, and why."""
    response = ExportTraceServiceResponse()
    if refused:
        response.partial_success.rejected_spans, response.partial_success.error_message = refused, why
    return _encoded(response, content_type)


def refusal(content_type: str, why: str) -> bytes:
    """The body that goes with a status of 400 or above."""
    return _encoded(Status(message=why), content_type)


def _encoded(message: Message, content_type: str) -> bytes:
    return json_format.MessageToJson(message, indent=None).encode() if content_type == JSON else message.SerializeToString()


def _spans(request: Any) -> Iterator[Span]:
    for by_resource in request.resource_spans:
        resource = _attributes(by_resource.resource.attributes)
        for by_scope in by_resource.scope_spans:
            for span in by_scope.spans:
                yield Span(
                    span.trace_id.hex(), span.span_id.hex(), span.name, _attributes(span.attributes), span.start_time_unix_nano,
                    span.end_time_unix_nano, span.status.code == STATUS_ERROR, resource,
                )  # fmt: skip


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    """An AnyValue as plain Python."""
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(each) for each in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case kind:
            return getattr(value, kind)


def _ids_as_bytes(tree: Any) -> Any:
    """The same tree with ids as protobuf's JSON wants them. Raises ValueError."""
    if isinstance(tree, list):
        return [_ids_as_bytes(each) for each in tree]
    if not isinstance(tree, dict):
        return tree
    return {name: _as_base64(value) if name in IDS and isinstance(value, str) else _ids_as_bytes(value) for name, value in tree.items()}


def _as_base64(value: str) -> str:
    try:
        return base64.b64encode(bytes.fromhex(value)).decode()
    except binascii.Error as error:
        raise ValueError(str(error)) from None
