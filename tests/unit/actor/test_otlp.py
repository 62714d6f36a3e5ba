"""Spans of agents' telemetry, in both encodings, as episodes; what does not fit says why."""

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from actor.api_keys import Key, new_key, write_keys
from actor.otlp.otlp_receiver import Receiver
from actor.otlp.otlp_settings import OtlpSettings
from actor.otlp.otlp_wire import JSON, PROTOBUF, read_spans
from actor.otlp.reported_span import Span
from actor.otlp.span_episodes import episodes_of, kind_of
from streams.core.clock import FixedClock
from streams.core.errors import InvalidEvent
from streams.core.events import DeadLetter, Episode, Event, Outcome
from streams.core.metrics import Metrics
from streams.core.person_ids import person_of
from streams.core.topics import Topic
from streams.outbox.outbox import Outbox

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = [{"role": "user", "parts": [{"type": "text", "content": "Tell me about tea."}]}]
TOLD = [{"role": "assistant", "parts": [{"type": "text", "content": "It is good."}], "finish_reason": "stop"}]
CHAT: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "default",
    "gen_ai.response.model": "default@3",
    "gen_ai.response.id": "chatcmpl-77",
    "gen_ai.input.messages": json.dumps(ASKED),
    "gen_ai.output.messages": json.dumps(TOLD),
}


def span(**changes: Any) -> Span:
    told = CHAT | {f"gen_ai.{name}".replace("__", "."): value for name, value in changes.items()}
    return Span("ab" * 16, "cd" * 8, "chat default", {k: v for k, v in told.items() if v is not None}, 1_000_000_000, 3_000_000_000)


def one(**changes: Any) -> Episode:
    (episode,) = episodes_of(span(**changes), "default", "acme")
    return episode


def as_json(*attributes: dict[str, Any]) -> bytes:
    """An export as exporters of JSON write it: ids in hexadecimal, large integers as strings."""
    spans = [
        {"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "chat", "startTimeUnixNano": "1000000000", "endTimeUnixNano": "3000000000",
         "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in each.items()], "status": {}}
        for each in attributes
    ]  # fmt: skip
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]}).encode()


def as_protobuf(*attributes: dict[str, Any]) -> bytes:
    request = ExportTraceServiceRequest()
    by_resource = request.resource_spans.add()
    by_resource.resource.attributes.add(key="service.name").value.string_value = "shop"
    for each in attributes:
        made = by_resource.scope_spans.add().spans.add(
            trace_id=b"\xab" * 16, span_id=b"\xcd" * 8, name="chat", start_time_unix_nano=1_000_000_000, end_time_unix_nano=3_000_000_000
        )
        for key, value in each.items():
            made.attributes.add(key=key).value.string_value = value
    return request.SerializeToString()


def test_both_encodings_tell_the_same() -> None:
    assert read_spans(as_json(CHAT), JSON) == read_spans(as_protobuf(CHAT), PROTOBUF)
    (found,) = read_spans(as_json(CHAT), JSON)
    assert (found.trace_id, found.span_id, found.resource["service.name"]) == ("ab" * 16, "cd" * 8, "shop")


def test_structured_attributes_are_read_as_their_json_is() -> None:
    request = ExportTraceServiceRequest()
    made = request.resource_spans.add().scope_spans.add().spans.add(start_time_unix_nano=1, end_time_unix_nano=2)
    made.attributes.add(key="gen_ai.operation.name").value.string_value = "chat"
    for key, role, text in (("gen_ai.input.messages", "user", "Hi"), ("gen_ai.output.messages", "assistant", "Ho")):
        message = made.attributes.add(key=key).value.array_value.values.add().kvlist_value
        message.values.add(key="role").value.string_value = role
        part = message.values.add(key="parts").value.array_value.values.add().kvlist_value
        part.values.add(key="type").value.string_value = "text"
        part.values.add(key="content").value.string_value = text
    (found,) = read_spans(request.SerializeToString(), PROTOBUF)
    (episode,) = episodes_of(found, "default", "default")
    assert (episode.messages[0].content, episode.answer) == ("Hi", "Ho")


def test_an_answer_becomes_an_episode_that_feedback_finds_by_the_answers_own_id() -> None:
    episode = one(user="u-7", conversation__id="c-1", request__temperature=0.5, request__max_tokens=32)
    assert (episode.episode_id, episode.adapter, episode.tenant, episode.user_id) == ("77", "default@3", "acme", "u-7")
    assert (episode.messages[0].content, episode.answer, episode.outcome) == ("Tell me about tea.", "It is good.", Outcome.COMPLETED)
    assert (episode.conversation_id, episode.sampling) == ("c-1", {"temperature": 0.5, "max_tokens": 32})
    assert (episode.ended_at - episode.started_at).total_seconds() == 2


def test_what_another_model_answered_is_not_said_of_the_base() -> None:
    assert one(response__model="gpt-4o").adapter == "gpt-4o"
    assert one(response__model="default").adapter is None
    assert one(response__model="base").adapter is None


def test_each_choice_is_an_episode_and_an_answer_without_an_id_is_named_by_its_span() -> None:
    several = episodes_of(span(output__messages=json.dumps(TOLD * 2)), "default", "default")
    assert [episode.episode_id for episode in several] == ["77-0", "77-1"]
    assert one(response__id=None).episode_id == f"otel-{'ab' * 16}-{'cd' * 8}"


def test_tools_are_told_in_openais_shape() -> None:
    call = {"type": "tool_call", "id": "call_1", "name": "weather", "arguments": {"city": "Paris"}}
    response = {"type": "tool_call_response", "id": "call_1", "response": "rain"}
    asked = [*ASKED, {"role": "assistant", "parts": [call]}, {"role": "tool", "parts": [response]}]
    episode = one(input__messages=json.dumps(asked), tool__definitions='[{"type": "function", "name": "weather"}]',
                  output__messages=json.dumps([{"role": "assistant", "parts": [call], "finish_reason": "tool_call"}]))  # fmt: skip
    wanted = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    assert episode.tool_calls == (wanted,)
    assert episode.messages[1].tool_calls == (wanted,)
    assert (episode.messages[2].role, episode.messages[2].tool_call_id, episode.messages[2].content) == ("tool", "call_1", "rain")
    assert (episode.turn, episode.tools[0]["name"]) == (1, "weather")


def test_instructions_come_first_and_what_was_thought_is_not_the_answer() -> None:
    thought = [{"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"}, *TOLD[0]["parts"]], "finish_reason": "length"}]  # type: ignore[misc]
    episode = one(system_instructions='[{"type": "text", "content": "Be kind."}]', output__messages=json.dumps(thought))
    assert [message.role for message in episode.messages] == ["system", "user"]
    assert (episode.answer, episode.outcome) == ("It is good.", Outcome.TRUNCATED)


def test_messages_in_openais_own_shape_are_understood() -> None:
    episode = one(input__messages='[{"role": "user", "content": "Hi"}]', output__messages='[{"role": "assistant", "content": "Ho"}]')
    assert (episode.messages[0].content, episode.answer) == ("Hi", "Ho")


def test_a_failed_answer_is_an_outcome_and_never_a_verdict() -> None:
    failed = Span("a", "b", "chat", CHAT | {"error.type": "InternalServerError", "gen_ai.output.messages": "[]"}, 1, 2, failed=True)
    (episode,) = episodes_of(failed, "default", "default")
    assert (episode.outcome, episode.error, episode.answer) == (Outcome.FAILED, "InternalServerError", "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"input__messages": None}, "no_content"),
        ({"output__messages": None}, "no_answer"),
        ({"input__messages": '[{"role": "us'}, "not_json"),
        ({"input__messages": '{"role": "user"}'}, "invalid"),
        ({"tool__definitions": "[1]"}, "invalid"),
    ],
)
def test_what_does_not_fit_says_why(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidEvent) as told:
        episodes_of(span(**changes), "default", "default")
    assert told.value.reason == reason


def test_what_an_actor_has_kept_and_what_is_no_answer_is_passed_over() -> None:
    assert kind_of(span(response__id=f"chatcmpl-ep-{'0' * 32}")) == "captured"
    assert kind_of(span(operation__name="execute_tool")) == "other"
    assert kind_of(Span("a", "b", "GET /", {"http.request.method": "GET"})) == "other"
    assert kind_of(span()) == "answer"


class Spool(Outbox):
    """Stands for the outbox."""

    def __init__(self, room: int = 1000) -> None:
        self.kept: list[Event] = []
        self.room = room

    def put(self, topic: Topic[Any], event: Event, headers: Any = ()) -> bool:
        if len(self.kept) >= self.room:
            return False
        self.kept.append(event)
        return True


class Door:
    """The receiver's ASGI application, asked without a network."""

    def __init__(self, room: int = 1000, **settings: Any) -> None:
        self.spool, self.metrics = Spool(room), Metrics()
        self.receiver = Receiver(OtlpSettings(**settings), "default", self.spool, self.metrics, FixedClock(NOW))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.receiver.app()), base_url="http://otlp")

    async def post(self, body: bytes, content_type: str = PROTOBUF, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post("/v1/traces", content=body, headers={"content-type": content_type, **named})


@pytest.fixture
def door() -> Iterator[Door]:
    return Door()


async def test_an_export_is_answered_in_its_own_encoding(door: Door) -> None:
    told = await door.post(as_protobuf(CHAT))
    assert (told.status_code, told.headers["content-type"]) == (200, PROTOBUF)
    assert ExportTraceServiceResponse.FromString(told.content) == ExportTraceServiceResponse()
    told = await door.post(gzip.compress(as_json(CHAT)), JSON, content_encoding="gzip")
    assert (told.status_code, told.json()) == (200, {})
    assert [type(event) for event in door.spool.kept] == [Episode, Episode]
    assert door.metrics.value("tidemill_otlp_spans_total", result="answer") == 2


async def test_a_span_that_does_not_fit_is_set_aside_and_the_rest_is_taken(door: Door) -> None:
    silent = {key: value for key, value in CHAT.items() if "messages" not in key}
    told = await door.post(as_json(silent, CHAT, {"http.request.method": "GET"}), JSON)
    assert told.json()["partialSuccess"] == {"rejectedSpans": "1", "errorMessage": "set aside as dead letters: 1 no_content"}
    letter, episode = door.spool.kept
    assert isinstance(letter, DeadLetter)
    assert isinstance(episode, Episode)
    assert (letter.reason, letter.source_topic, letter.source_offset, letter.at) == ("no_content", "otlp", -1, NOW)
    assert "CAPTURE_MESSAGE_CONTENT" in letter.message
    assert json.loads(base64.b64decode(letter.record_base64))["attributes"] == silent
    assert door.metrics.value("tidemill_dead_letters_total", topic="otlp", reason="no_content") == 1


async def test_what_must_not_be_kept_is_taken_out_of_episodes_and_of_what_is_set_aside(door: Door) -> None:
    said = json.dumps([{"role": "user", "content": "I am a@b.co"}])
    await door.post(as_json(CHAT | {"gen_ai.input.messages": said}, CHAT | {"gen_ai.input.messages": f"{said}]"}), JSON)
    episode, letter = door.spool.kept
    assert isinstance(episode, Episode)
    assert isinstance(letter, DeadLetter)
    assert (episode.messages[0].text, episode.redacted) == ("I am [email]", {"emails": 1})
    assert b"I am [email]" in base64.b64decode(letter.record_base64)
    assert door.metrics.value("tidemill_redactions_total", kind="emails") == 1


@pytest.mark.parametrize(("body", "content_type"), [(b"{", JSON), (b'{"resourceSpans": 7}', JSON), (b"\xff\xff", PROTOBUF), (b"[]", JSON)])
async def test_what_is_no_export_is_refused_with_the_reason_and_its_words_are_not_kept(door: Door, body: bytes, content_type: str) -> None:
    told = await door.post(body, content_type)
    assert told.status_code == 400
    (letter,) = door.spool.kept
    assert isinstance(letter, DeadLetter)
    assert (letter.reason, letter.record_base64) == ("not_otlp", "")  # nobody could redact it, nor find in it whom an erasure means
    assert f"{len(body)} bytes, SHA-256 {sha256(body).hexdigest()}" in letter.message


async def test_a_full_outbox_asks_the_exporter_to_come_again() -> None:
    door = Door(room=1)
    told = await door.post(as_json(CHAT, CHAT), JSON)
    assert (told.status_code, told.headers["retry-after"]) == (503, "5")


async def test_an_export_that_unpacks_to_too_much_is_refused() -> None:
    told = await Door(max_request_bytes=2048).post(gzip.compress(b"0" * 100_000), content_encoding="gzip")
    assert told.status_code == 413
    assert (await Door(max_request_bytes=2048).post(b"0" * 4096)).status_code == 413
    assert (await Door().post(b"", "text/plain")).status_code == 415


async def test_a_sender_without_a_key_does_not_come_in(tmp_path: Path) -> None:
    key, hashed = new_key()
    write_keys(tmp_path / "keys.json", [Key(sha256=hashed, tenant="acme", scopes=("talk",))])
    door = Door(keys_file=tmp_path / "keys.json")
    assert (await door.post(as_json(CHAT), JSON)).status_code == 401
    assert (await door.post(as_json(CHAT), JSON, authorization=f"Bearer {key}")).status_code == 200
    (episode,) = door.spool.kept
    assert isinstance(episode, Episode)
    assert episode.tenant == "acme"


@pytest.mark.parametrize("answer", [
    [{"role": "assistant", "content": [{"type": "text", "text": None}]}], [{"role": "assistant", "content": {"answer": "x"}}],
    [{"role": "assistant", "content": ["x"]}], [{"role": "assistant", "content": 5}], [{"role": "assistant", "parts": 7, "content": True}],
    [[]], "x", 7,
    [{"role": "assistant", "tool_calls": 3}], [{"role": 3, "parts": [{"type": [], "content": {}}]}], [{"finish_reason": {}}],
])  # fmt: skip
async def test_whatever_one_span_holds_the_others_are_taken(door: Door, answer: Any) -> None:
    odd = CHAT | {"gen_ai.output.messages": json.dumps(answer), "gen_ai.response.id": "odd"}
    told = await door.post(as_json(CHAT, odd, CHAT | {"gen_ai.response.id": "last"}), JSON)
    assert told.status_code == 200
    assert [event.episode_id for event in door.spool.kept if isinstance(event, Episode) and event.episode_id != "odd"] == ["77", "last"]
    of_the_odd = [event for event in door.spool.kept if isinstance(event, DeadLetter) or event.key == "odd"]
    assert len(of_the_odd) == 1  # an episode, or a dead letter with its reason: never neither
    assert not (isinstance(of_the_odd[0], Episode) and of_the_odd[0].answer == "None")


@pytest.mark.parametrize("parts", [["It is", " good."], [{"type": "text", "content": "It is good."}, {"type": "text", "content": None}]])
def test_bare_strings_and_empty_parts_are_text_and_nothing(parts: list[Any]) -> None:
    assert one(output__messages=json.dumps([{"role": "assistant", "parts": parts}])).answer == "It is good."


async def test_half_an_emoji_anywhere_costs_no_span(door: Door) -> None:
    cut = CHAT | {"http.user_agent": "x \ud83d"}
    said = CHAT | {"gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": "hi \ud83d"}]}])}
    told = await door.post(as_json(CHAT, cut, said), JSON)
    assert (told.status_code, told.json()) == (200, {})
    assert [event.messages[0].text for event in door.spool.kept if isinstance(event, Episode)][2] == "hi \ufffd"


@pytest.mark.parametrize(("operation", "kind"), [
    ("acompletion", "answer"), ("responses", "answer"), (None, "answer"), ("embeddings", "other"), ("execute_tool", "other"),
    ("invoke_agent", "other"),
])  # fmt: skip
def test_an_instrumentations_own_word_for_an_answer_is_one_where_the_span_carries_an_answer(operation: str | None, kind: str) -> None:
    assert kind_of(span(operation__name=operation)) == kind


def test_ids_that_are_numbers_name_people_and_conversations() -> None:
    told = Span("ab" * 16, "cd" * 8, "chat", CHAT | {"user.id": 42, "session.id": 7}, 1, 2)
    (episode,) = episodes_of(told, "default", "acme")
    assert (episode.user_id, episode.conversation_id) == ("42", "7")


def test_a_finish_reason_on_the_span_counts_where_the_message_has_none_each_choice_by_its_place() -> None:
    cut = [{"role": "assistant", "parts": [{"type": "text", "content": "Tea is a"}]}, {"role": "assistant", "content": "Tea."}]
    first, second = episodes_of(span(output__messages=json.dumps(cut), response__finish_reasons=["length", "stop"]), "default", "acme")
    assert (first.outcome, second.outcome) == (Outcome.TRUNCATED, Outcome.COMPLETED)


async def test_a_letter_says_whom_it_names_also_beyond_its_cut(door: Door) -> None:
    long = CHAT | {"a": "x" * 100_000, "user.id": "u-77", "gen_ai.output.messages": '[{"role":"assis'}
    await door.post(as_json(long), JSON)
    (letter,) = door.spool.kept
    assert isinstance(letter, DeadLetter)
    assert b"u-77" not in base64.b64decode(letter.record_base64)
    assert person_of("u-77") in letter.people


async def test_an_export_above_the_limit_is_counted() -> None:
    door = Door(max_request_bytes=1024)
    assert (await door.post(as_json(CHAT | {"pad": "x" * 2000}), JSON)).status_code == 413
    assert door.metrics.value("tidemill_otlp_spans_total", result="too_large") == 1


@pytest.mark.parametrize(("reason", "outcome"), [
    ("STOP", "completed"), ("end_turn", "completed"), ("tool_calls", "completed"), ("length", "truncated"), ("MAX_TOKENS", "truncated"),
    ("content_filter", "truncated"), ("guardrail_intervened", "truncated"), ("SAFETY", "truncated"), ("error", "failed"), ("cancelled", "cancelled"),
])  # fmt: skip
def test_finish_reasons_are_understood_as_conventions_and_providers_write_them(reason: str, outcome: str) -> None:
    bare = json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": "Tea"}]}])
    for reasons in ([reason], json.dumps([reason]), reason):
        assert one(output__messages=bare, response__finish_reasons=reasons).outcome == outcome


@pytest.mark.parametrize("operation", ["plan", "fetch_response", "search_memory", "create_memory", "invoke_workflow"])
def test_todays_operations_that_are_no_answers_are_none(operation: str) -> None:
    assert kind_of(span(operation__name=operation)) == "other"


def told(span_id: str, began: int, ended: int, trace: str = "ab" * 16, **changes: Any) -> Span:
    attributes = {key: value for key, value in (CHAT | changes).items() if value is not None}
    return Span(trace, span_id, "chat", attributes, began * 10**9, ended * 10**9)


def episodes(door: Door) -> list[Episode]:
    return [event for event in door.spool.kept if isinstance(event, Episode)]


@pytest.mark.parametrize("apart", [False, True])
def test_a_framework_span_around_its_clients_is_the_same_call(apart: bool) -> None:
    door = Door()
    inner = told("01" * 8, 2, 3)
    outer = told("02" * 8, 1, 4, **{"gen_ai.response.id": None, "user.id": "ann", "session.id": "cv"})
    for spans in [[inner], [outer]] if apart else [[inner, outer]]:
        door.receiver.take(spans, "acme")
    (episode,) = episodes(door)
    assert episode.episode_id == "77"
    if not apart:
        assert (episode.user_id, episode.conversation_id) == ("ann", "cv")
    assert door.metrics.value("tidemill_otlp_spans_total", result="told_twice") == 1


def test_a_gateways_span_of_another_trace_under_the_same_answer_id_is_the_same_call() -> None:
    door = Door()
    door.receiver.take([told("01" * 8, 2, 3), told("02" * 8, 1, 2, trace="cd" * 16)], "acme")
    assert len(episodes(door)) == 1


def test_calls_one_after_the_other_and_those_of_two_people_are_two_whatever_they_say() -> None:
    door, nameless = Door(), {"gen_ai.response.id": None}
    door.receiver.take([told("01" * 8, 1, 2, **nameless), told("02" * 8, 3, 4, **nameless)], "acme")
    door.receiver.take([told("03" * 8, 1, 2, **{"user.id": "ann"}), told("04" * 8, 1, 2, **{"user.id": "bob"})], "acme")
    assert len(episodes(door)) == 4


def test_an_export_that_is_sent_again_makes_the_same_episodes_again() -> None:
    door = Door()
    for _ in range(2):
        door.receiver.take([told("01" * 8, 1, 2)], "acme")
    assert [each.episode_id for each in episodes(door)] == ["77", "77"]


@pytest.mark.parametrize("body", [gzip.compress(as_protobuf(CHAT))[:-9], gzip.compress(as_protobuf(CHAT))[:40]], ids=["without its end", "40 bytes"])
async def test_a_gzip_that_is_cut_off_is_refused(door: Door, body: bytes) -> None:
    assert (await door.post(body, content_encoding="gzip")).status_code == 400
    assert episodes(door) == []


async def test_every_member_of_a_gzip_is_read(door: Door) -> None:
    whole = as_protobuf(CHAT)
    answer = await door.post(gzip.compress(whole[:100]) + gzip.compress(whole[100:]), content_encoding="gzip")
    assert (answer.status_code, len(episodes(door))) == (200, 1)


def tree_of(*attributes: dict[str, Any]) -> Any:
    return json.loads(as_json(*attributes))


def spans_in(tree: Any) -> list[Any]:
    found: list[Any] = tree["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return found


OTHERS = [CHAT, CHAT | {"gen_ai.response.id": "last"}]


@pytest.mark.parametrize("broken", [
    7, None, "x", [], {}, {"startTimeUnixNano": "soon"}, {"startTimeUnixNano": {}}, {"endTimeUnixNano": 1e400}, {"endTimeUnixNano": -5},
    {"startTimeUnixNano": "99999999999999999999999999"}, {"attributes": 7}, {"attributes": [7, {}, {"key": 7}, {"key": "x"}]}, {"events": 7},
])  # fmt: skip
async def test_a_span_that_is_none_is_set_aside_alone(door: Door, broken: Any) -> None:
    tree = tree_of(*OTHERS)
    right = {**spans_in(tree)[0], "traceId": "ef" * 16}
    spans_in(tree).insert(1, right | broken if isinstance(broken, dict) and broken else broken)
    told = await door.post(json.dumps(tree).encode(), JSON)
    assert told.status_code == 200
    assert {"77", "last"} <= {event.episode_id for event in door.spool.kept if isinstance(event, Episode)}
    others = [event for event in door.spool.kept if isinstance(event, DeadLetter)]
    counted = door.metrics.value("tidemill_otlp_spans_total", result="other") + door.metrics.value("tidemill_otlp_spans_total", result="told_twice")
    assert len(others) + counted == 1 or len([event for event in door.spool.kept if isinstance(event, Episode)]) == 3, "somewhere it is counted"


@pytest.mark.parametrize("value", [
    {"intValue": "12.5"}, {"intValue": 10**30}, {"intValue": "x"}, {"boolValue": "yes"}, {"stringValue": 5}, {"doubleValue": "NaN"},
    {"doubleValue": {}},
    {"bytesValue": "é"}, {"arrayValue": 7}, {"kvlistValue": {"values": {}}}, {"strangeValue": 1}, 7, None, {"stringValue": "x \ud83d"},
])  # fmt: skip
async def test_an_attribute_of_any_shape_costs_no_answer(door: Door, value: Any) -> None:
    tree = tree_of(CHAT)
    spans_in(tree)[0]["attributes"].insert(0, {"key": "http.header", "value": value})
    assert (await door.post(json.dumps(tree).encode(), JSON)).json() == {}
    assert [type(event) for event in door.spool.kept] == [Episode]


@pytest.mark.parametrize("content_type", [JSON, PROTOBUF])
async def test_a_character_that_is_cut_in_its_bytes_costs_no_span(door: Door, content_type: str) -> None:
    """As exporters do that cut attributes by their bytes; protobuf's own reader refuses the whole export."""
    marked = CHAT | {"http.header": "caf\u00e9!"}
    body = (as_json if content_type == JSON else as_protobuf)(marked, *OTHERS[1:])
    body = body.replace(b"caf\\u00e9!", b"caf\xc3").replace("caf\u00e9!".encode(), b"caf\xc3\xc3!")
    assert b"\xc3" in body
    assert (await door.post(body, content_type)).status_code == 200
    assert [event.key for event in door.spool.kept] == ["77", "last"]


@pytest.mark.parametrize(("written", "read"), [
    ("ab" * 16, "ab" * 16), ("AB" * 16, "ab" * 16), (base64.b64encode(b"\xab" * 16).decode(), "ab" * 16), ("7", None), (7, None), (None, None),
    ("", ""),
])  # fmt: skip
def test_ids_of_spans_are_read_as_exporters_write_them(written: Any, read: str | None) -> None:
    tree = tree_of(CHAT)
    spans_in(tree)[0]["traceId"] = written
    (found,) = read_spans(json.dumps(tree).encode(), JSON)
    assert found.trace_id == read if read is not None else len(found.trace_id) == 32


@pytest.mark.parametrize(("encoding", "pack"), [
    ("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstandard.compress), ("identity", bytes),
])  # fmt: skip
async def test_exports_are_read_in_every_compression_that_collectors_use(door: Door, encoding: str, pack: Any) -> None:
    packed = pack(as_protobuf(CHAT))
    assert (await door.post(packed, content_encoding=encoding)).status_code == 200
    assert [event.key for event in door.spool.kept] == ["77"]
    if encoding != "identity":
        assert (await door.post(packed[:-9], content_encoding=encoding)).status_code == 400
        assert (await Door(max_request_bytes=2048).post(pack(b"0" * 100_000), content_encoding=encoding)).status_code == 413
    assert (await door.post(packed, content_encoding="br")).status_code == 400


def numbered(kind: str, message: str = "", parts: str = "") -> dict[str, Any]:
    """Attributes as OpenLLMetry and OpenInference number them."""
    asked, answered = ("llm.input_messages", "llm.output_messages") if message else ("gen_ai.prompt", "gen_ai.completion")
    return {
        f"{asked}.1.{message}content": "Tell me about tea.", f"{asked}.1.{message}role": "user",
        f"{asked}.0.{message}role": "system", f"{asked}.0.{message}content": "Be brief.",
        f"{answered}.0.{message}role": "assistant", f"{answered}.0.{message}content": "It is good.",
        f"{answered}.0.{message}tool_calls.0.{parts}name": "brew", f"{answered}.0.{message}tool_calls.0.{parts}arguments": '{"cups": 2}',
    }  # fmt: skip


SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me about tea."}
BREW = {"id": "c1", "type": "function", "function": {"name": "brew", "arguments": '{"cups": 2}'}}
ANSWER = {"role": "assistant", "content": "It is good.", "tool_calls": [BREW]}
OLDER: dict[str, tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]] = {
    "openllmetry": ({"llm.request.type": "chat", "traceloop.association.properties.user_id": "u-1"} | numbered("x"), []),
    "openinference": ({"openinference.span.kind": "LLM", "user.id": "u-1"} | numbered("x", "message.", "tool_call.function."), []),
    "before 1.28": ({"gen_ai.operation.name": "chat", "user.id": "u-1", "gen_ai.prompt": json.dumps([SYSTEM, USER]),
                     "gen_ai.completion": json.dumps([ANSWER])}, []),
    "one event each": ({"gen_ai.operation.name": "chat", "user.id": "u-1"}, [
        ("gen_ai.system.message", {"content": "Be brief."}), ("gen_ai.user.message", {"content": "Tell me about tea."}),
        ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": json.dumps(ANSWER)})]),
    "events' content": ({"gen_ai.operation.name": "chat", "user.id": "u-1"}, [
        ("gen_ai.system.message", {"gen_ai.event.content": json.dumps(SYSTEM)}), ("gen_ai.user.message", {"gen_ai.event.content": json.dumps(USER)}),
        ("gen_ai.choice", {"gen_ai.event.content": json.dumps({"message": ANSWER, "finish_reason": "stop"})})]),
    "events of both sides": ({"gen_ai.operation.name": "chat", "user.id": "u-1"}, [
        ("gen_ai.content.prompt", {"gen_ai.prompt": json.dumps([SYSTEM, USER])}),
        ("gen_ai.content.completion", {"gen_ai.completion": json.dumps([ANSWER])})]),
    "today's names on an event": ({"gen_ai.operation.name": "chat", "user.id": "u-1"}, [
        ("gen_ai.client.inference.operation.details", {
            "gen_ai.input.messages": json.dumps([SYSTEM, USER]), "gen_ai.output.messages": json.dumps([ANSWER])})]),
}  # fmt: skip


@pytest.mark.parametrize("convention", OLDER)
async def test_spans_of_older_and_other_conventions_are_answers_too(door: Door, convention: str) -> None:
    told, events = OLDER[convention]
    tree = tree_of(told)
    spans_in(tree)[0]["events"] = [
        {"name": name, "attributes": [{"key": key, "value": {"stringValue": str(value)}} for key, value in each.items()]} for name, each in events
    ]
    assert (await door.post(json.dumps(tree).encode(), JSON)).json() == {}
    (episode,) = door.spool.kept
    assert isinstance(episode, Episode)
    assert [(message.role, message.text) for message in episode.messages] == [("system", "Be brief."), ("user", "Tell me about tea.")]
    assert (episode.answer, episode.user_id) == ("It is good.", "u-1")
    assert [call["function"] for call in episode.tool_calls] == [BREW["function"]]


async def test_an_operation_that_nobody_knows_is_counted_apart_where_it_carries_no_answer(door: Door) -> None:
    silent = {"gen_ai.operation.name": "acompletion", "gen_ai.request.model": "m"}
    assert (await door.post(as_json(silent, {"http.method": "GET"}, CHAT | {"gen_ai.operation.name": "acompletion"}), JSON)).json() == {}
    assert [door.metrics.value("tidemill_otlp_spans_total", result=result) for result in ("unknown_operation", "other", "answer")] == [1, 1, 1]


def test_a_clock_that_was_set_back_during_an_answer_costs_no_answer() -> None:
    (episode,) = episodes_of(Span("a", "b", "chat", CHAT, 3_000_000_000, 2_000_000_000), "default", "default")
    assert episode.started_at == episode.ended_at


async def test_whom_a_letter_of_a_broken_span_names_is_found(door: Door) -> None:
    tree = tree_of({"user.id": "jos\u00e9"})
    spans_in(tree)[0]["startTimeUnixNano"] = "soon"
    await door.post(json.dumps(tree).encode(), JSON)
    (letter,) = door.spool.kept
    assert isinstance(letter, DeadLetter)
    assert letter.people == (person_of("jos\u00e9"),)


@pytest.mark.parametrize(("changes", "messages", "answer"), [
    ({"system_instructions": "Be brief."}, ["Be brief.", "Tell me about tea."], "It is good."),
    ({"system_instructions": ["Be", " brief."]}, ["Be brief.", "Tell me about tea."], "It is good."),
    ({"input__messages": "Tell me about tea."}, ["Tell me about tea."], "It is good."),
    ({"output__messages": "It is good."}, ["Tell me about tea."], "It is good."),
    ({"output__messages": '["It is good."]'}, ["Tell me about tea."], "It is good."),
])  # fmt: skip
def test_plain_text_in_place_of_messages_is_what_was_said(changes: dict[str, Any], messages: list[str], answer: str) -> None:
    episode = one(**changes)
    assert ([message.text for message in episode.messages], episode.answer) == (messages, answer)


def test_choices_under_an_id_of_the_longest_kind_are_episodes() -> None:
    first, second = episodes_of(span(response__id="x" * 200, output__messages=json.dumps(TOLD * 2)), "default", "acme")
    assert first.episode_id != second.episode_id


@pytest.mark.parametrize("marks", [{"logfire.span_type": "pending_span"}, {"partial.event": "heartbeat"}])
async def test_the_beginning_of_a_span_is_no_letter_and_the_whole_one_is_the_answer(door: Door, marks: dict[str, str]) -> None:
    begun = {name: value for name, value in CHAT.items() if "output" not in name} | marks
    assert (await door.post(as_json(begun, CHAT), JSON)).json() == {}
    assert [event.key for event in door.spool.kept] == ["77"]
    assert door.metrics.value("tidemill_otlp_spans_total", result="unfinished") == 1
