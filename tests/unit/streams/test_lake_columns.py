"""The lake's columns: what other tools read is the event, the original bytes are beside it, and an erasure clears both."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet
import pytest
from pydantic import BaseModel

from infra.build.reference_pages import EXAMPLES
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import DeadLetter, Episode, Erasure, Event, Feedback, Label, Message
from streams.core.topics import DEAD_LETTERS, EPISODES, FEEDBACK, LABELS, TOPICS, Topic
from streams.join.join_settings import JoinSettings
from streams.kafka import Record
from streams.lake.lake_erasure import LakeErasure
from streams.lake.lake_layout import RECORD, LakeLayout
from streams.lake.parquet_lake import Lake

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
T0_MS = int(T0.timestamp() * 1000)
HER, HER_WORDS = "ann-the-forgotten", "my cat is called Minka"


def records(topic: Topic[Any], values: list[bytes | None]) -> list[Record]:
    return [Record(topic.name, 0, offset, T0_MS + offset, f"k{offset}".encode(), value) for offset, value in enumerate(values)]


def rows(lake: Lake, topic: Topic[Any]) -> list[dict[str, Any]]:
    """As any reader of Parquet sees the topic."""
    return [row for file in lake.files(topic) for row in pyarrow.parquet.read_table(file.path, partitioning=None).to_pylist()]


def same(told: Any, value: Any) -> bool:
    """True when a column tells this value of an event."""
    if isinstance(value, BaseModel):
        extra = {"extra": value.model_extra} if value.model_extra else {}
        fields = {name: getattr(value, name) for name in type(value).model_fields} | extra
        return all(same(told[name], given) for name, given in fields.items())
    if isinstance(value, str | None):
        return bool(told == value)
    if isinstance(told, str):
        return bool(json.loads(told) == json.loads(json.dumps(value)))
    if isinstance(value, dict):
        return {k for k, _ in told} == set(value) and all(same(v, value[k]) for k, v in told)
    if isinstance(value, tuple):
        return len(told) == len(value) and all(map(same, told, value))
    return bool(told == value)


def episode(user_id: str, number: int = 0, **given: Any) -> Episode:
    asked = (Message(role="user", content=HER_WORDS if user_id == HER else f"question {number}"),)
    return Episode(episode_id=f"ep-{number}", user_id=user_id, messages=asked, started_at=T0, ended_at=T0, **given)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.short_name)
def test_every_topic_has_a_column_for_every_field_of_its_event(topic: Topic[Any], tmp_path: Path) -> None:
    lake, event = Lake(str(tmp_path)), topic.event.model_validate(EXAMPLES[topic.short_name])
    lake.write(topic, records(topic, [event.encode()]))
    (row,) = rows(lake, topic)
    assert same(row, event)
    names = LakeLayout(topic).schema.names
    assert len(set(names)) == len(names), "a field of the event has the name of one of the record's columns"
    assert set(names) == {*RECORD.names, "partition", "invalid_reason", *topic.event.model_fields}
    assert (row["value"], row["offset"], row["partition"], row["invalid_reason"]) == (event.encode(), 0, 0, None)


def test_what_may_be_anything_is_json_and_text_stays_text(tmp_path: Path) -> None:
    parts = ({"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "sha256:1"}})
    said = (Message(role="user", content=parts), Message.model_validate({"role": "assistant", "content": '["quoted"]', "reasoning_content": "hm"}))
    told = episode("ann", tools=({"type": "function"},), sampling={"temperature": 0.8, "stop": None}).model_copy(update={"messages": said})
    lake = Lake(str(tmp_path))
    lake.write(EPISODES, records(EPISODES, [told.encode()]))
    (row,) = rows(lake, EPISODES)
    assert json.loads(row["messages"][0]["content"]) == list(parts)
    assert row["messages"][1]["content"] == '["quoted"]'
    assert json.loads(row["messages"][1]["extra"]) == {"reasoning_content": "hm"}
    assert [json.loads(tool) for tool in row["tools"]] == [{"type": "function"}]
    assert json.loads(row["sampling"])["temperature"] == 0.8
    assert row["started_at"] == T0


def test_a_record_that_has_no_columns_keeps_its_bytes_and_says_why(tmp_path: Path) -> None:
    good = episode("ann").encode()
    huge = episode("ann").model_copy(update={"redacted": {"card": 10**30}}).encode()
    values = [good, b"\xff\x00 not json", b'{"schema_version": 9}', b'{"schema_version": 1}', huge, None, b"", good]
    lake = Lake(str(tmp_path))
    lake.write(EPISODES, written := records(EPISODES, values))
    assert list(lake.records(EPISODES)) == written
    reasons = [row["invalid_reason"] for row in rows(lake, EPISODES)]
    assert reasons == [None, "not_json", "unknown_version", "invalid", "out_of_range", None, "empty", None]
    assert [row["episode_id"] for row in rows(lake, EPISODES)] == ["ep-0", None, None, None, None, None, None, "ep-0"]


def test_files_of_the_older_layout_are_read_beside_the_new_ones_to_the_bit(tmp_path: Path) -> None:
    lake, written = Lake(str(tmp_path)), records(EPISODES, [episode("ann", number).encode() for number in range(4)])
    lake.write(EPISODES, written)
    old = lake.files(EPISODES)[0]
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(old.path, columns=RECORD.names, partitioning=None).cast(RECORD), old.path)
    more = [Record(EPISODES.name, 0, 4 + n, T0_MS, b"k", episode("bob", n).encode()) for n in range(3)]
    lake.write(EPISODES, more)
    assert pyarrow.parquet.read_schema(old.path) == RECORD
    assert list(lake.records(EPISODES)) == written + more
    assert [each.user_id for each in lake.replay(EPISODES)] == ["ann"] * 4 + ["bob"] * 3


def test_other_tools_query_a_whole_topic_by_its_nested_columns(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    for part in range(3):
        told = [Record(EPISODES.name, part, n, T0_MS + 86_400_000 * n, b"k", episode(f"user-{part}", n, answer="yes" * n).encode()) for n in range(3)]
        lake.write(EPISODES, told)
    found = pyarrow.dataset.dataset(tmp_path / "episodes", partitioning="hive")
    of_one = found.to_table(filter=(pyarrow.dataset.field("user_id") == "user-1") & (pyarrow.dataset.field("day") == "2026-01-02"))
    assert of_one["answer"].to_pylist() == ["yes"]
    questions = pyarrow.compute.struct_field(pyarrow.compute.list_flatten(found.to_table()["messages"]), "content")
    assert sorted(questions.to_pylist()) == sorted([f"question {n}" for n in range(3)] * 3)


@pytest.mark.parametrize("layout", ["columns", "older"])
def test_an_erasure_clears_the_columns_too(layout: str, tmp_path: Path) -> None:
    lake, people = Lake(str(tmp_path / "lake")), ["bob", HER, "cy", HER]
    asked = [episode(person, number) for number, person in enumerate(people)]
    thumbs = [Feedback.model_validate({"feedback_id": f"f{n}", "episode_id": "ep-0", "user_id": person, "kind": "comment", "text": HER_WORDS
                                       if person == HER else "fine", "at": T0}) for n, person in enumerate(people)]  # fmt: skip
    vote = {"feedback_id": "f1", "user_id": HER, "kind": "thumb", "value": 1.0, "text": HER_WORDS, "at": T0}
    labels = [Label.model_validate({"episode_id": f"ep-{n}", "policy": "default", "user_id": person, "outcome": "completed",
                                    "messages": asked[n].messages, "answer": "yes", "verdict": 1.0, "episode_at": T0, "first_feedback_at": T0,
                                    "newest_feedback_at": T0, "votes": [vote, vote | {"user_id": "bob", "text": None}]})
              for n, person in enumerate(people)]  # fmt: skip
    letters = [DeadLetter(source_topic=FEEDBACK.name, source_partition=0, source_offset=1, reason="invalid", message="m", part="join", at=T0,
                          record_base64="eyJ1c2VyX2lkIjoiYW5uLXRoZS1mb3Jnb3R0ZW4ifQ==")]  # fmt: skip
    told: list[tuple[Topic[Any], list[Any]]] = [(EPISODES, asked), (FEEDBACK, thumbs), (LABELS, labels), (DEAD_LETTERS, letters)]
    for topic, events in told:
        lake.write(topic, records(topic, [event.encode() for event in events]))
        if layout == "older":
            path = lake.files(topic)[0].path
            pyarrow.parquet.write_table(pyarrow.parquet.read_table(path, columns=RECORD.names, partitioning=None).cast(RECORD), path)
    erasure = LakeErasure(lake, ArtifactStore(str(tmp_path / "artifacts")), JoinSettings())
    report = erasure.erase(Erasure.of(HER, "operator", T0 + timedelta(minutes=1)), T0_MS + 60_000, T0)
    assert report.removed == {"episodes": 2, "feedback": 2, "labels": 4, "dead-letters": 1, "media": 0}
    needles = (HER, HER_WORDS, "eyJ1c2VyX2lk")
    for topic, _ in told:
        assert not any(needle in str(row) for row in rows(lake, topic) for needle in needles)
        files = b"".join(Path(file.path).read_bytes() for file in lake.files(topic))  # Parquet keeps least and greatest values in clear
        assert not any(needle.encode() in files for needle in needles)
    assert [row["user_id"] for row in rows(lake, EPISODES)] == ["bob", None, "cy", None]
    assert [len(row["votes"]) for row in rows(lake, LABELS) if row["votes"] is not None] == [1, 1]
    assert [row["invalid_reason"] for row in rows(lake, EPISODES)] == [None] * 4


def test_events_of_any_kind_cost_one_decoding_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes | None] = []
    real = Event.decode.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(Event, "decode", classmethod(lambda cls, raw: decoded.append(raw) or real(cls, raw)))
    values: list[bytes | None] = [episode("ann", number).encode() for number in range(50)]
    Lake(str(tmp_path)).write(EPISODES, records(EPISODES, values))
    assert decoded == values
    decoded.clear()
    assert sum(1 for _ in Lake(str(tmp_path)).records(EPISODES)) == 50
    assert decoded == []
