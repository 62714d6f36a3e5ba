"""OTLP over HTTP: its compressions and its two encodings of spans, read into one shape, and its answers. The one home of OTLP's protobuf messages.

Source: the OTLP specification 1.x, "OTLP/HTTP". What is wrong with one span, one attribute or one character stays there: exporters send an export
that is refused as a whole never again.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import zstandard
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from actor.otlp.otlp_json import spans_of_json
from actor.otlp.reported_span import STATUS_ERROR, Span, SpanEvent
from streams.core.errors import InvalidEvent

PROTOBUF, JSON = "application/x-protobuf", "application/json"
PIECE = 1024
ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS


class TooLarge(Exception):
    """An export is larger, unpacked, than the limit. Caught by the door alone."""


def unpacked(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """The body without its compression. Raises TooLarge, or InvalidEvent for what is not so compressed, or in another way."""
    match encoding:
        case "" | "identity":
            return body
        case "gzip" | "x-gzip" | "deflate" | "zlib":
            return _inflated(body, limit_bytes, encoding)
        case "zstd":
            return _all_frames(body, limit_bytes)
        case _:
            raise InvalidEvent("not_otlp", f"content-encoding {encoding[:100]}: gzip, deflate, zstd or none")


def _inflated(body: bytes, limit_bytes: int, encoding: str) -> bytes:
    whole = bytearray()
    while body:  # a gzip file may have several members, one after the other
        try:
            unpacker = zlib.decompressobj(ZLIB_OR_GZIP)
            whole += unpacker.decompress(body, limit_bytes + 1 - len(whole))
        except zlib.error as error:
            raise InvalidEvent("not_otlp", f"the body is no {encoding}: {error}") from None
        if len(whole) > limit_bytes:
            raise TooLarge
        if not unpacker.eof:
            raise InvalidEvent("not_otlp", f"the {encoding} body is cut off")
        body = unpacker.unused_data
    return bytes(whole)


def _all_frames(body: bytes, limit_bytes: int) -> bytes:
    zstd = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    whole, unpacker = bytearray(), zstd.decompressobj()
    try:
        for begin in range(0, len(body), PIECE):  # a piece at a time, since it says all that it holds at once
            piece = body[begin : begin + PIECE]
            while piece:
                unpacker = zstd.decompressobj() if unpacker.eof else unpacker
                whole += unpacker.decompress(piece)
                piece = unpacker.unused_data
            if len(whole) > limit_bytes:
                raise TooLarge
    except zstandard.ZstdError as error:
        raise InvalidEvent("not_otlp", f"the body is no zstd: {error}") from None
    if not unpacker.eof:
        raise InvalidEvent("not_otlp", "the zstd body is cut off")
    return bytes(whole)


def read_spans(body: bytes, content_type: str) -> list[Span]:
    """The spans of an export. Raises InvalidEvent with reason ``not_otlp``."""
    try:
        if content_type == JSON:
            return list(spans_of_json(body))
        request = _lenient_request()()
        request.ParseFromString(body)
        return list(_spans(request))
    except (DecodeError, ValueError, RecursionError) as error:
        raise InvalidEvent("not_otlp", f"the body is no ExportTraceServiceRequest in {content_type}: {type(error).__name__}") from None


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


@cache
def _lenient_request() -> Callable[[], Any]:
    """ExportTraceServiceRequest with bytes for every text: on the wire they are the same, and a text that is no UTF-8, cut within a character as
    exporters cut attributes, does not make the whole message unreadable."""
    pool = descriptor_pool.DescriptorPool()
    for file in _with_what_it_imports(ExportTraceServiceRequest.DESCRIPTOR.file):
        made = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(made)
        for message in made.message_type:
            _texts_to_bytes(message)
        pool.AddSerializedFile(made.SerializeToString())
    made_class: Callable[[], Any] = message_factory.GetMessageClass(pool.FindMessageTypeByName(ExportTraceServiceRequest.DESCRIPTOR.full_name))
    return made_class


def _with_what_it_imports(file: Any) -> list[Any]:
    """The file after those that it imports, each once."""
    found: dict[str, Any] = {}
    for imported in file.dependencies:
        found |= {each.name: each for each in _with_what_it_imports(imported)}
    return list((found | {file.name: file}).values())


def _texts_to_bytes(message: Any) -> None:
    for each in message.field:
        if each.type == each.TYPE_STRING:
            each.type = each.TYPE_BYTES
    for inner in message.nested_type:
        _texts_to_bytes(inner)


def _spans(request: Any) -> Iterator[Span]:
    for by_resource in request.resource_spans:
        resource = _attributes(by_resource.resource.attributes)
        for by_scope in by_resource.scope_spans:
            for span in by_scope.spans:
                events = tuple(SpanEvent(_decoded(event.name), _attributes(event.attributes)) for event in span.events)
                yield Span(
                    span.trace_id.hex(), span.span_id.hex(), _decoded(span.name), _attributes(span.attributes), span.start_time_unix_nano,
                    span.end_time_unix_nano, span.status.code == STATUS_ERROR, resource, events,
                )  # fmt: skip


def _decoded(text: bytes) -> str:
    return text.decode(errors="replace")


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {_decoded(pair.key): _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    """An AnyValue as plain Python."""
    match value.WhichOneof("value"):
        case None:
            return None
        case "string_value":
            return _decoded(value.string_value)
        case "array_value":
            return [_value(each) for each in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case kind:
            return getattr(value, kind)
