"""A collector of traces: takes OTLP over HTTP as OpenTelemetry's exporters send it, and keeps the spans."""

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from infra.local.startable import Startable


@dataclass(frozen=True)
class Stage:
    """A span of Tidemill's."""

    name: str
    part: str
    trace: str
    span: str
    parent: str


class Collector(Startable):
    """``url`` is what ``traces.url`` names."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []
        stages = self.stages

        class Door(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                export = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in export.resource_spans:
                    (part,) = [pair.value.string_value for pair in resource.resource.attributes if pair.key == "service.name"]
                    stages.extend(
                        Stage(span.name, part, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                        for scope in resource.scope_spans for span in scope.spans
                    )  # fmt: skip
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def line(self, last: Stage) -> list[Stage]:
        """That span and all before it, as far as they were sent here; the first first."""
        by_id = {stage.span: stage for stage in self.stages}
        found = [last]
        while (before := by_id.get(found[0].parent)) is not None:
            found.insert(0, before)
        return found
