"""Spans across the stages: one trace from the answer to its load, carried in headers; off, nothing is made and nothing is carried."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from streams.core.traces import Headers, Traces, context_as_text, context_from_header, make_traces, trace_in_logs
from streams.core.traces_settings import TracesSettings

T0 = datetime(2026, 1, 1, tzinfo=UTC)
CLIENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def told(traces: Traces, stage: str, *follows: Headers) -> Headers:
    return traces.record_span(stage, T0, T0 + timedelta(seconds=2), follows, episode="ep-1")


def test_a_stage_continues_the_trace_of_the_newest_record_and_links_to_the_others(spans: InMemorySpanExporter) -> None:
    traces = Traces("streams", spans)
    asked = context_from_header(CLIENT)
    captured = told(traces, "capture", asked)
    other = told(traces, "capture")
    told(traces, "join", other, (), captured)
    traces.close()
    by_name: dict[str, list[ReadableSpan]] = {}
    for span in spans.get_finished_spans():
        by_name.setdefault(span.name, []).append(span)
    (joined,), (capture, apart) = by_name["join"], by_name["capture"]
    assert capture.parent is not None
    assert (f"{capture.context.trace_id:032x}", f"{capture.parent.span_id:016x}") == ("ab" * 16, "cd" * 8)
    assert joined.parent is not None
    assert (joined.context.trace_id, joined.parent.span_id) == (capture.context.trace_id, capture.context.span_id)
    assert [link.context.span_id for link in joined.links] == [apart.context.span_id]
    assert (joined.end_time or 0) - (joined.start_time or 0) == 2_000_000_000
    assert joined.resource.attributes["service.name"] == "tidemill-streams"


@pytest.mark.parametrize("value", [None, "", "00-0-0-01", CLIENT + "\n", "x" * 10_000])
def test_what_is_no_context_is_passed_over(value: str | None, spans: InMemorySpanExporter) -> None:
    assert context_from_header(value) == ()
    traces = Traces("actor", spans)
    told(traces, "capture", context_from_header(value), (("traceparent", b"\xff"),), (("other", b"x"),))
    traces.close()
    assert spans.get_finished_spans()[0].parent is None


def test_lines_that_are_logged_meanwhile_name_the_trace_of_the_newest_record() -> None:
    older = context_from_header(f"00-{'ef' * 16}-{'cd' * 8}-01")
    context = structlog.contextvars.get_contextvars
    with trace_in_logs(older, context_from_header(CLIENT), ()):
        assert context() == {"trace": "ab" * 16}
        with trace_in_logs((), (("traceparent", b"\xff"),)):
            assert context() == {"trace": "ab" * 16}
        with trace_in_logs(older):
            assert context() == {"trace": "ef" * 16}
        assert context() == {"trace": "ab" * 16}
    with trace_in_logs(), trace_in_logs(()):
        assert context() == {}


def test_off_nothing_is_carried_and_opentelemetry_is_not_even_imported() -> None:
    traces = make_traces(TracesSettings(), "actor")
    assert (traces.enabled, told(traces, "capture", context_from_header(CLIENT)), context_as_text(())) == (False, (), "")
    script = "import sys, streams.join.join_loop, streams.outbox.outbox; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False).returncode == 0
