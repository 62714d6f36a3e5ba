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
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from actor.adapters.attestation import read_probes
from actor.api_keys import read_keys
from actor.doors.feedback_door import read_object
from actor.otlp.otlp_wire import JSON as OTLP_JSON
from actor.otlp.otlp_wire import PROTOBUF, read_spans, unpacked
from actor.otlp.span_episodes import episodes_of
from infra.build.reference_pages import EXAMPLES
from infra.settings.config import load
from learner.ring.adapter_recipe import AdapterRecipe
from reward.fit.replay_buffer import BufferEntry
from reward.fit.reward_model import RewardModel
from streams.artifacts.artifact_store import MANIFEST, ArtifactStore, fingerprint
from streams.core.errors import AttestationFailed, BadArtifact, ConfigError, InvalidEvent, TidemillError, Unavailable
from streams.core.events import Artifact, Feedback, FeedbackKind
from streams.core.topics import BY_NAME, EPISODES, FEEDBACK, TOPICS, Topic
from streams.core.traces import context_from_header as given_headers
from streams.erasure.forgotten_people import Forgotten, record_without
from streams.join.feedback_join import FeedbackJoin, StatesInMemory
from streams.join.join_settings import EvidenceSettings, JoinSettings
from streams.kafka import KafkaSettings, Record
from streams.lake.parquet_lake import Lake
from streams.outbox.sqlite_spool import Spool, SpooledEvent
from tests.fuzz.inputs import as_bytes, raw, spoiled
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
        assert topic.decode(event.encode()) == event
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


@given(raw({"weights.safetensors": {"sha256": "0" * 64, "size_bytes": 4}}), st.binary(max_size=64))
def test_manifests(manifest: bytes, weights: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place, into = Path(folder) / "store" / "a", Path(folder) / "into" / "here"
        place.mkdir(parents=True)
        (place / MANIFEST).write_bytes(manifest)
        (place / "weights.safetensors").write_bytes(weights)
        artifact = Artifact(path="a", sha256=hashlib.sha256(manifest).hexdigest(), size_bytes=4)
        with pytest.raises(BadArtifact):  # no weights of 64 bytes or less have a checksum of zeros
            ArtifactStore(str(Path(folder) / "store")).fetch(artifact, into)
        assert not into.exists()
        assert sorted(path.name for path in Path(folder).iterdir() if path.name != "store") in ([], ["into"])
        assert list((Path(folder) / "into").glob("*")) == []


@given(st.data())
def test_reward_models(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "head.json").write_bytes(
            data.draw(raw({"format": 1, "features": "0" * 64, "temperature": 1.0, "offset": 0.0, "lower_bound_stds": 0.5}))
        )
        tensors = data.draw(st.binary(max_size=200) | st.just(safetensors.torch.save({"centre_D": torch.zeros(3)})))
        (folder / "head.safetensors").write_bytes(tensors)
        with pytest.raises(BadArtifact):
            RewardModel.load(folder)


@given(raw({"probes": [{"prompt_ids": [1], "output_ids": [2], "adapter_logprobs": [-0.1], "base_logprobs": [-0.2]}]}))
def test_probes_and_recipes(value: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        for file in ("probes.json", "recipe.json", "config.json"):
            (Path(name) / file).write_bytes(value)
        with pytest.raises(BadArtifact):
            AdapterRecipe.read(Path(name))
        with suppress(BadArtifact, AttestationFailed):
            assert read_probes(Path(name))
        assert fingerprint(Path(name))


@given(raw(json.loads(BufferEntry("ep", 1.0, 1, T0, torch.zeros(3).half()).encode())))
def test_entries_of_the_replay_buffer(value: bytes) -> None:
    try:
        assert BufferEntry.decode(value).stratum
    except InvalidEvent:
        return


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda middle: b"PAR1" + middle + b"PAR1"))
def test_files_of_the_lake(value: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episodes" / "day=2026-01-01" / "000-000000000000-000000000009.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(value)
        with pytest.raises(TidemillError):
            list(Lake(folder).records(EPISODES))


@given(st.lists(st.sampled_from(["offset", "timestamp", "key", "value", "other"]), unique=True, max_size=5))
def test_parquet_of_another_shape(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episodes" / "day=2026-01-01" / "000-000000000000-000000000000.parquet"
        path.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.table({name: ["x"] for name in names} or {"nothing": [1]}), str(path))
        with pytest.raises(BadArtifact):
            list(Lake(folder).records(EPISODES))


@given(raw({"keys": [{"sha256": "0" * 64, "tenant": "acme", "scopes": ["talk"], "per_minute": 60}]}))
def test_files_of_keys(value: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "keys.json").write_bytes(value)
        with refused(ConfigError, str(path)):
            read_keys(path)


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
            content = bytearray(path.read_bytes())
            for _ in range(data.draw(st.integers(1, 9))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
        case "counters":
            counters.write_bytes(data.draw(st.binary(max_size=40)))
        case "all":
            path.write_bytes(data.draw(st.binary(max_size=300)))


@given(st.lists(st.text(max_size=12) | st.sampled_from(["kafka", "actor.port", "=", "reward.person_share=2", "actor.port=x"]), max_size=3))
def test_settings(overrides: list[str]) -> None:
    with refused(ConfigError, "set|settings"):
        load(None, overrides, {})


def test_the_strategies_reach_what_is_right_too() -> None:
    """A fuzzer that only ever makes rubbish tests one line."""
    assert FEEDBACK.decode(as_bytes(EXAMPLES_JSON["feedback"])) == Feedback.model_validate(EXAMPLES["feedback"])
    assert FeedbackKind(EXAMPLES_JSON["feedback"]["kind"])
    assert KafkaSettings()
