"""Every event goes over the wire and back, defends itself, and says in one word why a record is refused."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import from_json

from infra.build.reference_pages import EXAMPLES
from streams.core.errors import InvalidEvent
from streams.core.events import Artifact, Episode, Event, Feedback, FeedbackKind, Label, Message, Outcome, Vote, new_id
from streams.core.topics import TOPICS

T0 = datetime(2026, 1, 1, tzinfo=UTC)
EPISODE: dict[str, Any] = {
    "schema_version": 1,
    "episode_id": "ep-1",
    "messages": [{"role": "user", "content": "hi"}],
    "answer": "hello",
    "started_at": "2026-01-01T00:00:00Z",
    "ended_at": "2026-01-01T00:00:01Z",
}
THUMB: dict[str, Any] = {"feedback_id": "fb-1", "episode_id": "ep-1", "kind": "thumb", "thumb": "up", "at": "2026-01-01T00:00:00Z"}


def raw(event: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({key: value for key, value in {**event, **changes}.items() if value is not ...}).encode()


def reason(event: type[Event], data: bytes | None) -> str:
    with pytest.raises(InvalidEvent) as refused:
        event.decode(data)
    return refused.value.reason


def test_an_event_is_the_same_after_the_wire() -> None:
    episode = Episode.decode(raw(EPISODE, output_ids=[1, 2], output_logprobs=[-0.1, -2.5], tools=[{"type": "function"}], sampling={"top_p": 0.9}))
    assert Episode.decode(episode.encode()) == episode


def test_a_reader_ignores_fields_it_does_not_know() -> None:
    assert Feedback.decode(raw(THUMB, colour="red")) == Feedback.decode(raw(THUMB))


def test_a_message_keeps_fields_it_does_not_know() -> None:
    episode = Episode.decode(raw(EPISODE, messages=[{"role": "user", "content": "hi", "name": "ann"}]))
    assert json.loads(episode.encode())["messages"] == [{"role": "user", "content": "hi", "name": "ann"}]


NO_EVENTS = {
    "nothing": (None, "empty"),
    "no bytes": (b"", "empty"),
    "cut": (b"{", "not_json"),
    "not UTF-8": (b"\xff\xfe", "not_json"),
    "a byte order mark alone": (b"\xef\xbb\xbf", "not_json"),
    "a list": (b"[]", "invalid"),
    "null": (b"null", "invalid"),
    "lists in lists": (b"[" * 100_000, "not_json"),
    "objects in objects": (b'{"a":' * 50_000, "not_json"),
}


@pytest.mark.parametrize(("data", "why"), NO_EVENTS.values(), ids=NO_EVENTS.keys())
def test_bytes_that_are_no_event_say_why(data: bytes | None, why: str) -> None:
    assert reason(Feedback, data) == why
    assert reason(Episode, data) == why


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5])
def test_an_unknown_version_is_refused_as_such(version: Any) -> None:
    assert reason(Feedback, raw(THUMB, schema_version=version)) == "unknown_version"


def test_a_record_without_a_version_is_of_the_first() -> None:
    assert Feedback.decode(raw(THUMB)).schema_version == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"thumb": 7},
        {"thumb": "sideways"},
        {"thumb": ...},
        {"rating": 3},
        {"kind": "rating", "thumb": ..., "rating": 6},
        {"kind": "rating", "thumb": ..., "rating": 0},
        {"kind": "comment", "thumb": ..., "text": ""},
        {"kind": "comment", "thumb": ..., "text": "x" * 100_001},
        {"kind": "applause"},
        {"feedback_id": ""},
        {"feedback_id": "x" * 201},
        {"feedback_id": "a\nb"},
        {"episode_id": ...},
        {"at": "2026-01-01T00:00:00"},
        {"at": "yesterday"},
    ],
    ids=str,
)
def test_feedback_that_makes_no_sense_is_invalid(changes: dict[str, Any]) -> None:
    assert reason(Feedback, raw(THUMB, **changes)) == "invalid"


@pytest.mark.parametrize(
    "changes",
    [
        {"output_ids": [1, 2], "output_logprobs": [-0.5]},
        {"output_ids": [1]},
        {"ended_at": "2025-12-31T23:59:59Z"},
        {"messages": ...},
        {"turn": -1},
        {"policy": "../x"},
        {"adapter_sha256": "abc"},
        {"outcome": "great"},
    ],
    ids=str,
)
def test_an_episode_that_makes_no_sense_is_invalid(changes: dict[str, Any]) -> None:
    assert reason(Episode, raw(EPISODE, **changes)) == "invalid"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_logprobs_are_finite(number: str) -> None:
    assert reason(Episode, raw(EPISODE, output_ids=[1], output_logprobs=["#"]).replace(b'"#"', number.encode())) in ("invalid", "not_json")


def test_each_kind_carries_exactly_its_field() -> None:
    carried = {"thumb": "up", "rating": 3, "text": "words", "over": "ep-2", "signal": "copied", "retracts": "fb-0"}
    needs = {
        "thumb": "thumb",
        "rating": "rating",
        "comment": "text",
        "correction": "text",
        "reply": "text",
        "comparison": "over",
        "signal": "signal",
        "retraction": "retracts",
    }
    for kind in FeedbackKind:
        for field, value in carried.items():
            data = raw(THUMB, kind=kind.value, **{"thumb": ..., field: value})
            if needs[kind.value] == field:
                assert Feedback.decode(data).kind is kind
            else:
                assert reason(Feedback, data) == "invalid"


def test_a_refusal_names_the_field_and_not_what_a_person_said() -> None:
    with pytest.raises(InvalidEvent, match="kind") as refused:
        Feedback.decode(raw(THUMB, kind="my secret diary", thumb="also secret"))
    assert "secret" not in str(refused.value)


def test_times_are_kept_in_utc() -> None:
    feedback = Feedback.decode(raw(THUMB, at="2026-01-01T02:00:00+02:00"))
    assert feedback.at == T0
    assert feedback.at.utcoffset() == timedelta(0)
    assert Feedback(**{**THUMB, "at": datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))}).at.utcoffset() == timedelta(0)


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Feedback.decode(raw(THUMB)).thumb = "down"  # type: ignore[misc]


def test_a_label_names_all_it_took_in() -> None:
    vote = Vote(feedback_id="a", user_id="ann", kind=FeedbackKind.THUMB, value=1, at=T0)
    label = Label(episode_id="e", policy="p", outcome=Outcome.COMPLETED, messages=(), answer="", verdict=1, votes=(vote,), superseded=("b",),
                  episode_at=T0, first_feedback_at=T0, newest_feedback_at=T0)  # fmt: skip
    assert label.feedback_ids == ("a", "b")
    assert Label.decode(label.encode()) == label


def test_a_text_in_parts_is_joined_and_pictures_are_passed_over() -> None:
    parts = ({"type": "text", "text": "see "}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_text", "text": "this"})
    assert Message(role="user", content=parts).text == "see this"
    assert Message(role="assistant").text == ""


def test_new_ids_differ() -> None:
    assert len({new_id("ep") for _ in range(1000)}) == 1000


def test_an_artifact_stays_in_its_store() -> None:
    assert Artifact(path="adapters/default@7", sha256="0" * 64, size_bytes=1).path == "adapters/default@7"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.short_name)
@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=30, deadline=None)
def test_no_bytes_crash_a_decoder(topic: Any, data: bytes) -> None:
    assert reason(topic.event, data) in {"empty", "not_json", "unknown_version", "invalid"}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8) | st.datetimes(timezones=st.timezones()).map(str)
    | st.sampled_from(["9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+01:00", "9999-12-31T23:00:00Z", "\ud83d", "NaN", 10**400, -1, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x\ud83d"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.sampled_from(TOPICS), st.data())
def test_whatever_a_field_holds_the_record_is_read_or_refused_and_what_is_read_can_be_written(topic: Any, data: st.DataObject) -> None:
    """The one rule for foreign bytes. A field of a valid record, or two of them, is anything that JSON can hold."""
    record = json.loads(topic.event.model_validate(EXAMPLES[topic.short_name]).encode())
    for name in data.draw(st.lists(st.sampled_from(sorted(topic.event.model_fields)), min_size=1, max_size=2)):
        record[name] = data.draw(JSON_VALUES)
    try:
        event = topic.decode(json.dumps(record).encode())
    except InvalidEvent:
        return
    assert topic.decode(event.encode()).encode() == event.encode()  # fields that are null are not written
    assert event.key.encode().decode() == event.key


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+01:00", "9999-12-31T23:00:00Z", "1969-12-31T23:59:59Z"])
def test_a_time_that_breaks_arithmetic_far_from_here_is_refused_here(time: str) -> None:
    with pytest.raises(InvalidEvent, match=r"at: .*between 1970 and 3000"):
        Feedback.decode(raw(THUMB, at=time))


@pytest.mark.parametrize("place", ["answer", "messages", "tools", "sampling"])
def test_half_an_emoji_costs_no_episode(place: str) -> None:
    half = "cut \ud83d"
    fields: dict[str, Any] = {
        "answer": half,
        "messages": [{"role": "user", "content": "hi", "name": half}],
        "tools": [{half: half}],
        "sampling": {"a": [half]},
    }
    read = Episode.decode(raw(EPISODE, **{place: fields[place]}))
    made = Episode.model_validate(EPISODE | {place: fields[place]})
    assert "cut \ufffd" in read.encode().decode()
    assert Episode.decode(made.encode()) == read


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\x00\x00\x00\x00\x07"])
def test_a_byte_order_mark_and_a_schema_registrys_frame_are_read_past(before: bytes) -> None:
    assert Feedback.decode(before + raw(THUMB)) == Feedback.decode(raw(THUMB))


@given(st.integers(1, 300), st.sampled_from(["content", "tools", "sampling", "extra"]), st.booleans())
def test_whatever_depth_can_be_read_can_be_kept_in_the_state_of_a_part_and_read_again(depth: int, place: str, lists: bool) -> None:
    """State wraps an event in further levels; an episode that only just could be read made a state that could not, for ever."""
    deep: Any = 1
    for _ in range(depth):
        deep = [deep] if lists else {"a": deep}
    fields: dict[str, Any] = {
        "content": {"messages": [{"role": "user", "content": [{"type": "x", "x": deep}]}]},
        "extra": {"messages": [{"role": "user", "content": "hi", "x": deep}]},
        "tools": {"tools": [{"x": deep}]},
        "sampling": {"sampling": {"x": deep}},
    }
    try:
        episode = Episode.decode(raw(EPISODE, **fields[place]))
    except InvalidEvent:
        assert depth > 140
        return
    assert depth <= 150
    wrapped = {"states": [{"known": {"episode": json.loads(episode.encode())}}]}
    assert from_json(json.dumps(wrapped)) == wrapped
    assert Episode.decode(episode.encode()) == episode


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_in_two_or_four_bytes_a_character_is_read(encoding: str) -> None:
    assert Feedback.decode(raw(THUMB).decode().encode(encoding)) == Feedback.decode(raw(THUMB))


def test_ids_that_are_numbers_are_those_numbers_and_other_numbers_are_no_text() -> None:
    read = Feedback.decode(raw(THUMB, episode_id=42, feedback_id=7, user_id=9))
    assert (read.episode_id, read.feedback_id, read.user_id) == ("42", "7", "9")
    said = [{"role": "tool", "content": "4 degrees", "tool_call_id": 7}]
    episode = Episode.decode(raw(EPISODE, episode_id=42, replies_to=41, messages=said))
    assert (episode.episode_id, episode.replies_to, episode.messages[0].tool_call_id) == ("42", "41", "7")
    for wrong in ({"episode_id": True}, {"episode_id": 1.5}, {"episode_id": 10**300}, {"episode_id": 42, "thumb": 7}, {"text": 5}):
        with pytest.raises(InvalidEvent):
            Feedback.decode(raw(THUMB, **wrong))


def test_what_is_framed_and_no_json_says_so() -> None:
    with pytest.raises(InvalidEvent, match="schema registry"):
        Feedback.decode(b"\x00\x00\x00\x00\x07\x02avro")


@pytest.mark.parametrize("content", [[{"type": "text", "text": None}], [{"type": 5, "text": "x"}], [{"text": 3}], [{}]])
def test_a_messages_text_is_text_whatever_its_parts_hold(content: list[dict[str, Any]]) -> None:
    assert Episode.decode(raw(EPISODE, messages=[{"role": "user", "content": content}])).messages[0].text in ("", "x")
