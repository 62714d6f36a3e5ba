"""An agent with an instrumented ``openai`` client, OpenTelemetry's own exporter, and a real Kafka: what it was answered are episodes there."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra.local.embedded_broker import free_port
from streams.core.events import DeadLetter, Episode, Outcome
from streams.core.metrics import Metrics
from streams.core.topics import DEAD_LETTERS, EPISODES
from streams.kafka import KafkaSettings, read_to_end

ROOT = Path(__file__).parents[2]
AGENT = """
import sys
from openai import OpenAI, OpenAIError
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

traces = TracerProvider(resource=Resource.create({"service.name": "shop"}))
traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
OpenAIInstrumentor().instrument(tracer_provider=traces)
client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tell me about tea."}]
client.chat.completions.create(model="default", messages=said, temperature=0.5)
list(client.chat.completions.create(model="default", messages=said, stream=True))
weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
client.chat.completions.create(model="default", messages=said, tools=[weather])
try:
    client.chat.completions.create(model="broken", messages=said)
except OpenAIError:
    pass
with traces.get_tracer("shop").start_as_current_span("not of our concern"):
    pass
traces.shutdown()
"""


class OpenAi(BaseHTTPRequestHandler):
    """As much of OpenAI's API as the agent asks for."""

    def log_message(self, *_: object) -> None:
        return

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked["model"] == "broken":
            return self._answer(500, {"error": {"message": "no"}})
        message = {"role": "assistant", "content": "It is good."}
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
        told = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "default@3"}
        if asked.get("stream"):
            pieces = [({"role": "assistant", "content": "It is "}, None), ({"content": "good."}, None), ({}, "stop")]
            chunks = [told | {"id": "chatcmpl-2", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": why}]}
                      for delta, why in pieces]  # fmt: skip
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write("".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n")
            return None
        if asked.get("tools"):
            told["id"], message = "chatcmpl-3", {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if asked.get("tools") else "stop"}
        return self._answer(200, told | {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}})

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def served() -> Iterator[str]:
    """The base URL of a small OpenAI."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), OpenAi)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def door(kafka_settings: KafkaSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``tidemill run otlp``, its port."""
    port, folder = free_port(), tmp_path_factory.mktemp("otlp")
    settings = (f"kafka.bootstrap_servers={kafka_settings.bootstrap_servers}", f"run_folder={folder}", f"otlp.port={port}")
    command = [sys.executable, "-P", "-m", "infra.cli", "run", "otlp", *(word for setting in settings for word in ("--set", setting))]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        until = time.monotonic() + 90
        while "otlp listens" not in (folder / "log").read_text():
            assert time.monotonic() < until, (folder / "log").read_text()
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        assert process.wait(30) == 0, (folder / "log").read_text()
    finally:
        process.kill()
        process.wait()


def run_agent(door: str, served: str, **environment: str) -> None:
    told = {"OTEL_EXPORTER_OTLP_ENDPOINT": door, "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental", **environment}
    done = subprocess.run(
        [sys.executable, "-P", "-c", AGENT, served], env=os.environ | told, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_an_instrumented_agent_was_answered_are_episodes(kafka_settings: KafkaSettings, door: str, served: str) -> None:
    run_agent(door, served, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="SPAN_ONLY")
    found = {episode.episode_id: episode for episode in wait_for_episodes(kafka_settings, 4)}
    whole, streamed, with_tool = found["1"], found["2"], found["3"]
    (failed,) = [episode for name, episode in found.items() if name.startswith("otel-")]
    for episode in (whole, streamed):
        assert (episode.answer, episode.adapter, episode.outcome, episode.replica) == ("It is good.", "default@3", Outcome.COMPLETED, "shop")
        assert [(message.role, message.text) for message in episode.messages] == [("system", "Be kind."), ("user", "Tell me about tea.")]
    assert whole.sampling == {"temperature": 0.5}
    assert with_tool.tool_calls[0]["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert with_tool.tools[0]["name"] == "weather"
    assert (failed.outcome, failed.adapter, failed.answer) == (Outcome.FAILED, "broken", "")


def test_spans_without_what_was_said_are_set_aside_with_the_reason(kafka_settings: KafkaSettings, door: str, served: str) -> None:
    run_agent(door, served, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="NO_CONTENT")
    until = time.monotonic() + 60
    letters: list[DeadLetter] = []
    while len(letters) < 4:
        assert time.monotonic() < until, letters
        time.sleep(0.2)
        letters = [DEAD_LETTERS.decode(record.value) for record in read_to_end(kafka_settings, DEAD_LETTERS, "test", Metrics())]
    assert {(letter.reason, letter.source_topic, letter.part) for letter in letters} == {("no_content", "otlp", "otlp")}
    assert len(letters) == 4


def wait_for_episodes(kafka: KafkaSettings, count: int) -> list[Episode]:
    until = time.monotonic() + 60
    while True:
        found = [EPISODES.decode(record.value) for record in read_to_end(kafka, EPISODES, "test", Metrics())]
        if len(found) >= count:
            return found
        assert time.monotonic() < until, found
        time.sleep(0.2)
