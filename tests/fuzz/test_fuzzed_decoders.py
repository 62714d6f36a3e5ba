"""Every decoder meets bytes that nobody should send. It gives what it promises or its own error: never another, never nothing."""

import hashlib
import json
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import find, given
from hypothesis import strategies as st

from actor.adapters.attestation import PROBES, read_probes
from actor.api_keys import read_keys, write_keys
from actor.doors.feedback_door import read_object
from actor.otlp.otlp_wire import JSON as OTLP_JSON
from actor.otlp.otlp_wire import PROTOBUF, read_spans, unpacked
from actor.otlp.span_episodes import episodes_of
from infra.build.reference_pages import EXAMPLES
from infra.settings.config import load
from learner.ring.adapter_recipe import RECIPE, AdapterRecipe, TakenStep
from learner.settings import LearnerSettings
from reward.fit.buffer_entry import BufferEntry
from reward.fit.reward_model import RewardModel
from streams.artifacts.artifact_store import MANIFEST, ArtifactStore, fingerprint
from streams.core.errors import AttestationFailed, BadArtifact, ConfigError, InvalidEvent, TidemillError, Unavailable
from streams.core.events import Artifact, Message
from streams.core.topics import BY_NAME, EPISODES, FEEDBACK, TOPICS, Topic
from streams.core.traces import context_from_header as given_headers
from streams.erasure.forgotten_people import Forgotten, record_without
from streams.join.feedback_join import FeedbackJoin, StatesInMemory
from streams.join.join_settings import EvidenceSettings, JoinSettings
from streams.kafka import Record
from streams.lake.event_columns import OUT_OF_RANGE
from streams.lake.lake_layout import LakeLayout
from streams.lake.parquet_lake import Lake
from streams.outbox.sqlite_spool import Spool, SpooledEvent
from tests.fuzz.inputs import as_bytes, damaged, raw, spoiled
from tests.unit.actor.test_candidate_scoring import head
from tests.unit.actor.test_otlp import CHAT, as_json
from tests.unit.streams.test_erasure import T0, forgotten


@contextmanager
def refused(error: type[TidemillError], told: str) -> Iterator[None]:
    """It goes well, or ends with this error alone, which says what is wrong."""
    try:
        yield
    except error as raised:
        if not re.search(told, str(raised)):
            raise


EXAMPLES_JSON = {topic.short_name: json.loads(topic.event.model_validate(EXAMPLES[topic.short_name]).encode()) for topic in TOPICS}


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.short_name)
@given(data=st.data())
def test_events(topic: Topic[Any], data: st.DataObject) -> None:
    value = data.draw(raw(EXAMPLES_JSON[topic.short_name]))
    with refused(InvalidEvent, "Episode|Feedback|Label|Version|Attestation|Promotion|DeadLetter|Eras"):
        event = topic.decode(value)
        assert topic.decode(event.encode()).encode() == event.encode()  # fields that are null are not written
        assert event.key


@given(st.data())
def test_a_label_is_made_of_whatever_decodes(data: st.DataObject) -> None:
    join = FeedbackJoin(StatesInMemory(), JoinSettings(), lambda *_: None)
    for _ in range(4):
        try:
            join.on_episode(EPISODES.decode(as_bytes(data.draw(spoiled(EXAMPLES_JSON["episodes"])))), T0)
            label = join.on_feedback(FEEDBACK.decode(as_bytes(data.draw(spoiled(EXAMPLES_JSON["feedback"])))), T0)
        except InvalidEvent:
            continue
        assert label is None or label.decode(label.encode()) == label


@given(st.sampled_from(TOPICS), st.data())
def test_what_erasure_leaves_of_a_record_can_be_read_or_is_nothing(topic: Topic[Any], data: st.DataObject) -> None:
    record = Record(topic.name, 0, 0, 0, None, data.draw(raw(EXAMPLES_JSON[topic.short_name])))
    left = record_without(record, forgotten("u-7"), EvidenceSettings())
    assert left is record or left.value is None or topic.decode(left.value)
    assert record_without(record, Forgotten(), EvidenceSettings()) is record


@given(raw(EXAMPLES_JSON["feedback"]))
def test_the_feedback_door(body: bytes) -> None:
    try:
        assert isinstance(read_object(body), dict)
    except InvalidEvent:
        return


@given(
    raw(json.loads(as_json(CHAT))) | st.binary(max_size=300),
    st.sampled_from([OTLP_JSON, PROTOBUF, "text/plain", ""]),
    st.sampled_from(["", "gzip", "br"]),
)
def test_telemetry(body: bytes, content_type: str, encoding: str) -> None:
    try:
        spans = read_spans(unpacked(body, encoding, 1 << 20), content_type)
    except InvalidEvent:
        return
    for span in spans:
        try:
            episodes_of(span, "default", "acme")
        except InvalidEvent:
            continue


WEIGHTS = b"four"
RIGHT_MANIFEST = {"weights.safetensors": {"sha256": hashlib.sha256(WEIGHTS).hexdigest(), "size_bytes": len(WEIGHTS)}}


@given(raw(RIGHT_MANIFEST), st.just(WEIGHTS) | st.binary(max_size=64))
def test_manifests(manifest: bytes, weights: bytes) -> None:
    """Either every file arrives as the manifest says, or none does."""
    with tempfile.TemporaryDirectory() as folder:
        artifact, into = stored(Path(folder), manifest, weights), Path(folder) / "into" / "here"
        try:
            ArtifactStore(str(Path(folder) / "store")).fetch(artifact, into)
            entries = json.loads(manifest)
            arrived = {name: hashlib.sha256((into / name).read_bytes()).hexdigest() for name in entries}
            assert arrived == {name: entry["sha256"] for name, entry in entries.items()}
            assert sum(path.is_file() for path in into.rglob("*")) == len(entries)
        except BadArtifact:
            assert not into.exists()
            assert list((Path(folder) / "into").glob("*")) == []
        assert sorted(path.name for path in Path(folder).iterdir() if path.name != "store") in ([], ["into"])


def stored(folder: Path, manifest: bytes, weights: bytes) -> Artifact:
    """An artifact with this manifest in a store below ``folder``, as an event would name it."""
    place = folder / "store" / "a"
    place.mkdir(parents=True)
    (place / MANIFEST).write_bytes(manifest)
    (place / "weights.safetensors").write_bytes(weights)
    return Artifact(path="a", sha256=hashlib.sha256(manifest).hexdigest(), size_bytes=len(WEIGHTS))


HEAD_FILES = ("head.json", "head.safetensors")


@given(st.data())
def test_reward_models(data: st.DataObject) -> None:
    """What loads can score; whatever else is refused."""
    with tempfile.TemporaryDirectory() as name:
        folder = head().save(Path(name) / "head")
        about, tensors = (folder / file for file in HEAD_FILES)
        about.write_bytes(data.draw(st.just(about.read_bytes()) | raw(json.loads(about.read_text()))))
        tensors.write_bytes(data.draw(st.just(tensors.read_bytes()) | damaged(tensors.read_bytes()) | st.binary(max_size=200)))
        with suppress(BadArtifact):
            model = RewardModel.load(folder)
            assert model.score(torch.zeros(1, model.centre_D.shape[0])).mean_N.shape == (1,)


RIGHT_PROBES = {"probes": [{"prompt_ids": [1], "output_ids": [2], "adapter_logprobs": [-0.1], "base_logprobs": [-0.2]}]}


@given(raw(RIGHT_PROBES))
def test_probes(value: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        for file in ("probes.json", "config.json"):
            (Path(name) / file).write_bytes(value)
        with suppress(BadArtifact, AttestationFailed):
            assert read_probes(Path(name))
        assert fingerprint(Path(name))


TAKEN = TakenStep(step=1, reward_model=Artifact(path="a", sha256="0" * 64, size_bytes=4), prompts=((Message(role="user", content="Tea?"),),))
RECIPE_READ = AdapterRecipe(
    settings=LearnerSettings(), features="0" * 64, engine="transformers", device="cpu", threads=1, after_step=0, steps=(TAKEN,)
)
RIGHT_RECIPE = json.loads(RECIPE_READ.model_dump_json())


@given(raw(RIGHT_RECIPE))
def test_recipes(value: bytes) -> None:
    """What can be read is written and read again unchanged."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / RECIPE).write_bytes(value)
        with suppress(BadArtifact):
            recipe = AdapterRecipe.read(Path(name))
            recipe.write(Path(name))
            assert AdapterRecipe.read(Path(name)) == recipe


RIGHT_ENTRY = json.loads(BufferEntry("ep", 1.0, 1, T0, torch.zeros(3).half()).encode())


@given(raw(RIGHT_ENTRY))
def test_entries_of_the_replay_buffer(value: bytes) -> None:
    try:
        assert BufferEntry.decode(value).stratum
    except InvalidEvent:
        return


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.short_name)
@given(data=st.data())
def test_columns_of_the_lake(topic: Topic[Any], data: st.DataObject) -> None:
    """Whatever is on the log, each row has its bytes, and the columns of its event or the reason why it has none."""
    values = data.draw(st.lists(raw(EXAMPLES_JSON[topic.short_name]), min_size=1, max_size=5))
    (batch,) = LakeLayout(topic).batches([Record(topic.name, 0, offset, 0, None, value) for offset, value in enumerate(values)])
    for row, value in zip(batch.to_pylist(), values, strict=True):
        assert row["value"] == value
        event, reason = decoded(topic, value)
        assert row["invalid_reason"] == reason or (reason is None and row["invalid_reason"] == OUT_OF_RANGE)
        told = {field: getattr(event, field) for field in topic.event.key_fields} if event and row["invalid_reason"] is None else {}
        assert told.items() <= row.items()


def decoded(topic: Topic[Any], value: bytes) -> tuple[Any, str | None]:
    """The event, or the reason why there is none."""
    try:
        return topic.decode(value), None
    except InvalidEvent as error:
        return None, error.reason


LAKE_RECORDS = [Record(EPISODES.name, 0, offset, 1_767_225_600_000 + offset, b"ep", b"{}") for offset in range(10)]


@given(st.data())
def test_files_of_the_lake(data: st.DataObject) -> None:
    """Damaged in any byte, cut short or replaced: it is read, or named as what cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        (written,) = Lake(folder).write(EPISODES, LAKE_RECORDS)
        right = Path(written.path).read_bytes()
        marked = st.binary(max_size=60).map(lambda middle: b"PAR1" + middle + b"PAR1")
        Path(written.path).write_bytes(data.draw(st.just(right) | damaged(right) | st.binary(max_size=300) | marked))
        with suppress(TidemillError):
            for record in Lake(folder).records(EPISODES):
                assert isinstance(record.offset, int)
                assert isinstance(record.value, bytes | None)


@given(st.lists(st.sampled_from(["offset", "timestamp", "key", "value", "other"]), unique=True, max_size=5))
def test_parquet_of_another_shape(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episodes" / "day=2026-01-01" / "000-000000000000-000000000000.parquet"
        path.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.table({name: ["x"] for name in names} or {"nothing": [1]}), str(path))
        with pytest.raises(BadArtifact):
            list(Lake(folder).records(EPISODES))


RIGHT_KEYS = [{"sha256": "0" * 64, "tenant": "acme", "scopes": ["talk"], "requests_per_minute": 60}]


@given(raw(RIGHT_KEYS))
def test_files_of_keys(value: bytes) -> None:
    """Keys that can be read are written and read again unchanged; anything else names the file."""
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "keys.json").write_bytes(value)
        with refused(ConfigError, re.escape(str(path))):
            keys = read_keys(path)
            write_keys(path, keys)
            assert read_keys(path) == keys


COLUMNS = ("id", "topic", "key", "value", "put_at_s", "trace")
CELLS = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=9) | st.binary(max_size=9) | st.just(EPISODES.name)


@given(st.data())
def test_the_outbox_file(data: st.DataObject) -> None:
    """Damaged in a cell, in any byte, in its counters or altogether: it opens with events that can be sent, or says that it cannot be used."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outbox.sqlite"
        right = [SpooledEvent(number, EPISODES.name, b"ep", b"{}" * number) for number in range(1, 6)]
        _damage(path, right, data)
        try:
            spool = Spool(path, synced=False)
        except Unavailable:
            return
        try:
            for waiting in spool.oldest(0, 10, 1 << 20):
                assert waiting.topic in BY_NAME
                assert isinstance(waiting.key, bytes)
                assert isinstance(waiting.value, bytes)
                given_headers(waiting.trace)
            assert spool.lost >= 0
            newcomer = SpooledEvent(spool.counters.accepted + 1, EPISODES.name, b"ep", b"{}")
            spool.counters.note(accepted=newcomer.id)
            spool.append([newcomer])
            spool.drop_older(3600)
            assert spool.oldest(newcomer.id - 1, 10, 1 << 20) == [newcomer]
            spool.delete_through(newcomer.id)
            assert spool.oldest(0, 10, 1 << 20) == []
        except Unavailable:
            return
        finally:
            spool.close()


def _damage(path: Path, right: list[SpooledEvent], data: st.DataObject) -> None:
    spool = Spool(path, synced=False)
    spool.counters.note(accepted=right[-1].id)
    spool.append(right)
    spool.close()
    counters = path.with_name(f"{path.name}.counters")
    match data.draw(st.sampled_from(["cell", "byte", "counters", "all"])):
        case "cell":
            database = sqlite3.connect(path)
            with suppress(sqlite3.Error), database:
                database.execute(f"UPDATE spool SET {data.draw(st.sampled_from(COLUMNS))} = ? WHERE id = 3", (data.draw(CELLS),))
            database.close()
        case "byte":
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        case "counters":
            counters.write_bytes(data.draw(st.binary(max_size=40)))
        case "all":
            path.write_bytes(data.draw(st.binary(max_size=300)))


@given(st.lists(st.text(max_size=12) | st.sampled_from(["kafka", "actor.port", "=", "reward.person_share=2", "actor.port=x"]), max_size=3))
def test_settings(overrides: list[str]) -> None:
    with refused(ConfigError, "set|settings"):
        load(None, overrides, {})


def test_what_the_fuzzers_start_from_is_right(tmp_path: Path) -> None:
    """A fuzzer that only ever makes rubbish tests one line."""
    for topic in TOPICS:
        assert topic.decode(as_bytes(EXAMPLES_JSON[topic.short_name])) == topic.event.model_validate(EXAMPLES[topic.short_name])
    assert read_object(as_bytes(EXAMPLES_JSON["feedback"]))
    assert [episodes_of(span, "default", "acme") for span in read_spans(as_bytes(json.loads(as_json(CHAT))), OTLP_JSON)] != []
    (keys := tmp_path / "keys.json").write_bytes(as_bytes(RIGHT_KEYS))
    assert [key.tenant for key in read_keys(keys)] == ["acme"]
    artifact = stored(tmp_path, as_bytes(RIGHT_MANIFEST), WEIGHTS)
    assert (ArtifactStore(str(tmp_path / "store")).fetch(artifact, tmp_path / "here") / "weights.safetensors").read_bytes() == WEIGHTS
    assert RewardModel.load(head().save(tmp_path / "head")).checksum() == head().checksum()
    for name, right in ((PROBES, RIGHT_PROBES), (RECIPE, RIGHT_RECIPE)):
        (tmp_path / name).write_bytes(as_bytes(right))
    assert len(read_probes(tmp_path).probes) == len(AdapterRecipe.read(tmp_path).steps) == 1
    assert BufferEntry.decode(as_bytes(RIGHT_ENTRY)).stratum == "good"
    Lake(str(tmp_path / "lake")).write(EPISODES, LAKE_RECORDS)
    assert list(Lake(str(tmp_path / "lake")).records(EPISODES)) == LAKE_RECORDS


def test_every_run_of_a_fuzzer_begins_with_what_is_right() -> None:
    assert find(raw(RIGHT_KEYS), lambda _: True) == as_bytes(RIGHT_KEYS)
