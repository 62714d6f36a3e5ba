"""A span as an exporter reported it, in either encoding."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STATUS_ERROR = 2


@dataclass(frozen=True)
class SpanEvent:
    """Something that happened within a span. Older conventions put what was said here."""

    name: str
    attributes: Mapping[str, Any]


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
    events: tuple[SpanEvent, ...] = ()
    unreadable: str | None = None
    """What is wrong with the span itself; ``attributes`` then holds it as it came, under ``span``."""
