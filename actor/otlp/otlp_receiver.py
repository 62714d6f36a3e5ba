"""The door for agents' telemetry: OTLP/HTTP in, episodes out through the outbox; a span that does not fit is a dead letter with the reason."""

import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from actor.api_keys import KeyGate, Keys, tenant_of
from actor.capture.capture_middleware import read_body
from actor.otlp.duplicate_spans import Call, SeenCalls, merged
from actor.otlp.older_conventions import by_todays_names
from actor.otlp.otlp_settings import OtlpSettings
from actor.otlp.otlp_wire import JSON, PROTOBUF, TooLarge, accepted, read_spans, refusal, unpacked
from actor.otlp.reported_span import Span
from actor.otlp.span_episodes import episodes_of, kind_of
from actor.redaction.redaction import redacted, redacted_episode, redactor_of
from streams.core.clock import Clock
from streams.core.errors import InvalidEvent
from streams.core.health import listening_socket
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import DEAD_LETTERS, EPISODES
from streams.kafka import Producer, Record
from streams.kafka.dead_letters import letter_of
from streams.outbox.outbox import Outbox

LOOP, TURN_S = "otlp", 30.0
PATH = "/v1/traces"
SOURCE = "otlp"
"""Source topic of this receiver's dead letters, which never reached a topic."""
AGAIN_S = "5"
log = structlog.get_logger()


class OutboxFull(Exception):
    """The outbox is full because Kafka has been unavailable for long. The receiver then asks the exporter to retry."""


class Receiver:
    """Receives exports. An acknowledged export is in the outbox."""

    def __init__(self, settings: OtlpSettings, policy: str, outbox: Outbox, metrics: Metrics, clock: Clock) -> None:
        """Raises ConfigError when the redactor in the settings is not installed."""
        self._settings, self._policy, self._outbox, self._metrics, self._clock = settings, policy, outbox, metrics, clock
        self._redactor, self._told = redactor_of(settings), SeenCalls()
        self._taking = threading.Lock()

    def app(self) -> ASGIApp:
        """The ASGI application; it asks for keys where the settings name a file of them."""
        app = Starlette(routes=[Route(PATH, self._traces, methods=["POST"])])
        return KeyGate(app, Keys(self._settings.keys_file)) if self._settings.keys_file else app

    def take(self, spans: Sequence[Span], tenant: str) -> dict[str, int]:
        """Episodes and dead letters of these spans, into the outbox; how many spans were refused, by reason. Raises OutboxFull.

        An export that is sent again makes episodes of the same ids, which the join drops.
        """
        told: list[Call | tuple[Span, InvalidEvent]] = []
        for place, span in enumerate(map(by_todays_names, spans)):
            if span.unreadable is not None:
                told.append((span, InvalidEvent("invalid", f"the span cannot be read: {span.unreadable}")))
                continue
            if (kind := kind_of(span)) != "answer":
                self._metrics.add("tidemill_otlp_spans_total", result=kind)
                if kind == "unknown_operation":
                    log.info(
                        "a span is no answer that we know", operation=str(span.attributes.get("gen_ai.operation.name"))[:100], name=span.name[:100]
                    )
                continue
            try:
                told.append(replace(self._told_by(span, tenant), place=place))
            except InvalidEvent as problem:
                told.append((span, problem))
        calls = [each for each in told if isinstance(each, Call)]
        with self._taking:  # exports are taken by several threads
            new = {call.place: call for call in merged(calls) if not self._told.has(call)}
            if len(calls) > len(new):
                self._metrics.add("tidemill_otlp_spans_total", len(calls) - len(new), result="told_twice")
            for each in told:
                if not isinstance(each, Call):
                    self._set_aside(*each)
                elif (call := new.get(each.place)) is not None:
                    self._take_call(call)
                    self._told.note(call)
        return Counter(each[1].reason for each in told if not isinstance(each, Call))

    def _take_call(self, call: Call) -> None:
        """Put the episodes of one call into the outbox. Raises OutboxFull."""
        for episode in call.episodes:
            if not self._outbox.put(EPISODES, episode):
                raise OutboxFull
            self._metrics.add("tidemill_episodes_captured_total", outcome=episode.outcome.value)
        for passage, count in call.taken_out.items():
            self._metrics.add("tidemill_redactions_total", count, kind=passage)
        self._metrics.add("tidemill_otlp_spans_total", result="answer")

    def _told_by(self, span: Span, tenant: str) -> Call:
        """What one span tells, redacted. Raises InvalidEvent: whatever a span makes fail is that span's fault, and the others go on."""
        try:
            found: Counter[str] = Counter()
            return Call(
                tenant, span, [redacted_episode(episode, self._redactor, found) for episode in episodes_of(span, self._policy, tenant)], found
            )
        except InvalidEvent:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary to telemetry that anybody may send
            raise InvalidEvent("invalid", f"the span cannot be read: {type(error).__name__}") from None

    async def _traces(self, request: Request) -> Response:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in (PROTOBUF, JSON):
            return Response(f"content-type {content_type or 'missing'}: {PROTOBUF} or {JSON}\n", 415)
        limit, too_large = self._settings.max_request_bytes, f"the export is larger than otlp.max_request_bytes = {self._settings.max_request_bytes}"
        packed = await read_body(request.receive, limit)
        if packed is None:
            return self._too_large(content_type, too_large)
        try:
            body = unpacked(packed, request.headers.get("content-encoding", "").strip().lower(), limit)
            refused = await run_in_threadpool(lambda: self.take(read_spans(body, content_type), tenant_of(request.scope)))
        except TooLarge:
            return self._too_large(content_type, too_large)
        except InvalidEvent as error:
            # Its bytes are not kept: what cannot be read can be neither redacted nor searched for people who are erased later.
            self._letter(b"", InvalidEvent(error.reason, f"{error}; {len(packed)} bytes, SHA-256 {sha256(packed).hexdigest()}"))
            return Response(refusal(content_type, str(error)), 400, media_type=content_type)
        except OutboxFull:
            full = "the outbox is full: Kafka has been away for long; send it again later"
            return Response(refusal(content_type, full), 503, {"retry-after": AGAIN_S}, content_type)
        why = "set aside as dead letters: " + ", ".join(f"{count} {reason}" for reason, count in sorted(refused.items()))
        return Response(accepted(content_type, sum(refused.values()), why), media_type=content_type)

    def _too_large(self, content_type: str, why: str) -> Response:
        """Write a dead letter: exporters do not send the span again, so the operator must see it."""
        self._metrics.add("tidemill_otlp_spans_total", result="too_large")
        log.warning("an export was refused", why=why, mend="raise the setting, or let the collector send smaller batches")
        return Response(refusal(content_type, why), 413, media_type=content_type)

    def _set_aside(self, span: Span, error: InvalidEvent) -> None:
        self._metrics.add("tidemill_otlp_spans_total", result="refused")
        log.info("a span went to the dead letters", span=span.span_id, trace=span.trace_id, name=span.name, reason=error.reason)
        self._letter(json.dumps(redacted(asdict(span), self._redactor, Counter()), default=repr).encode(), error, span.span_id)

    def _letter(self, raw: bytes, error: InvalidEvent, key: str | None = None) -> None:
        record = Record(SOURCE, -1, -1, 0, key.encode() if key else None, raw)
        told = letter_of(record, error, SOURCE, self._clock.now())
        if not self._outbox.put(DEAD_LETTERS, told):
            raise OutboxFull
        self._metrics.add("tidemill_dead_letters_total", topic=SOURCE, reason=error.reason)


def run(settings: OtlpSettings, context: PartContext) -> None:
    """Take telemetry until ``context.stopping`` is set. Raises ConfigError when the address cannot be listened on."""
    listening = listening_socket(settings.host, settings.port, "otlp")
    outbox = Outbox(context.state / "outbox.sqlite", lambda: Producer(context.kafka, context.metrics, "tidemill-otlp"), context.metrics, SOURCE,
                    settings, context.clock)  # fmt: skip
    app = Receiver(settings, context.policy, outbox, context.metrics, context.clock).app()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=max(1, round(settings.drain_s))))
    serving = threading.Thread(target=server.run, args=([listening],), name="otlp")  # off the main thread it leaves signals alone
    serving.start()
    log.info("otlp listens", url=f"http://{settings.host}:{listening.getsockname()[1]}{PATH}")
    try:
        while serving.is_alive() and not context.stopping.wait(0.5):
            if server.started:
                context.health.heartbeat(LOOP, TURN_S)
    finally:
        server.should_exit = True
        serving.join()
        listening.close()
        outbox.close(settings.drain_s)
