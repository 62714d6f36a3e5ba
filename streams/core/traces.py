"""Traces: one OpenTelemetry span for each stage (capture, join, refit, …). Kafka headers carry the trace context from stage to stage.

OpenTelemetry's SDK is imported here alone, and only when traces are on. A span is recorded when its stage is over, so no code has to keep one
open. When traces are off, a call returns at once.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog

from streams.core.traces_settings import TracesSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

Headers = tuple[tuple[str, bytes], ...]
"""Headers of a Kafka record."""
TRACEPARENT = "traceparent"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONTEXT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Traces:
    """Records the spans of one part. Without an exporter traces are off."""

    def __init__(self, part: str = "", exporter: "SpanExporter | None" = None) -> None:
        self._provider: Any = None
        if exporter is not None:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            self._provider = TracerProvider(resource=Resource.create({"service.name": f"tidemill-{part}"}))
            self._provider.add_span_processor(BatchSpanProcessor(exporter))

    @property
    def enabled(self) -> bool:
        """True when spans are recorded."""
        return self._provider is not None

    def record_span(self, stage: str, began_at: datetime, ended_at: datetime, follows: Sequence[Headers] = (), **attributes: str | int) -> Headers:
        """Record the span of a finished stage. Returns headers for the record that the stage produced; empty when traces are off.

        The span continues the trace of the newest record in ``follows`` that has one, and links to the traces of the others.
        """
        if self._provider is None:
            return ()
        from opentelemetry.trace import Link, NonRecordingSpan, set_span_in_context

        contexts = [context for headers in reversed(follows) if (context := _context(headers)) is not None]
        parent = set_span_in_context(NonRecordingSpan(contexts[0])) if contexts else None
        named = {f"tidemill.{name}": value for name, value in attributes.items()}
        links = [Link(context) for context in contexts[1:]]
        span = self._provider.get_tracer("tidemill").start_span(stage, context=parent, links=links, attributes=named, start_time=_ns(began_at))
        span.end(_ns(max(began_at, ended_at)))
        told = span.get_span_context()
        return ((TRACEPARENT, f"00-{told.trace_id:032x}-{told.span_id:016x}-01".encode()),)

    def close(self) -> None:
        """Send the spans that are still waiting."""
        if self._provider is not None:
            self._provider.shutdown()


def make_traces(settings: TracesSettings, part: str) -> Traces:
    """Traces as the settings say: off without a ``url``."""
    if not settings.url:
        return Traces()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Traces(part, OTLPSpanExporter(endpoint=settings.url))


def context_from_header(value: str | None) -> Headers:
    """The trace context that a client sent in its ``traceparent`` header."""
    return ((TRACEPARENT, value.encode()),) if value and _CONTEXT.fullmatch(value) else ()


def context_as_text(headers: Headers) -> str:
    """The trace context as text, to store beside an event; empty without one."""
    return next((value.decode("latin-1") for name, value in headers if name == TRACEPARENT and value), "")  # Kafka's headers may be null


@contextmanager
def trace_in_logs(*follows: Headers) -> Iterator[None]:
    """Adds ``trace`` to all log lines written inside: the id in the newest of these headers that carries one. Without any, nothing is added."""
    found = next((found for headers in reversed(follows) if (found := _CONTEXT.fullmatch(context_as_text(headers)))), None)
    if found is None:
        yield
        return
    with structlog.contextvars.bound_contextvars(trace=found[1]):
        yield


def _context(headers: Headers) -> Any:
    """OpenTelemetry's SpanContext from a W3C ``traceparent`` header; None without one."""
    from opentelemetry.trace import SpanContext, TraceFlags

    if (found := _CONTEXT.fullmatch(context_as_text(headers))) is None:
        return None
    return SpanContext(int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=TraceFlags(int(found[3], 16)))


def _ns(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1) * 1000
