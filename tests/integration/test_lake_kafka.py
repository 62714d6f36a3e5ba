"""The lake on a real Kafka: everything once, through restarts and full disks."""

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import new_id
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import FEEDBACK, TOPICS
from streams.kafka import KafkaSettings, Producer, end_offsets
from streams.lake import lake_loop as lake
from streams.lake.lake_loop import LakeSettings
from streams.lake.parquet_lake import Lake
from tests.support.running import running, wait_for


def site_at(kafka: KafkaSettings, folder: Path) -> PartContext:
    return PartContext(kafka, ArtifactStore(str(folder / "artifacts")), "default", folder, folder / "state")


def publish(kafka: KafkaSettings, count: int) -> list[bytes]:
    """Feedback that nobody can read is kept by the lake as well."""
    producer = Producer(kafka, Metrics(), "test")
    values = [f"not json {new_id('x')}".encode() for _ in range(count)]
    for value in values:
        producer.send_raw(FEEDBACK.name, value[-8:], value)
    producer.flush()
    producer.close()
    return values


def kept(folder: Path) -> Counter[bytes]:
    return Counter(record.value or b"" for record in Lake(str(folder)).records(FEEDBACK))


def holds(folder: Path, values: list[bytes]) -> bool:
    return kept(folder).keys() >= set(values)


def test_every_record_is_kept_once_through_restarts(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    settings = LakeSettings(uri=str(tmp_path / "lake"), flush_rows=100, flush_s=1)
    values = []
    for _ in range(3):
        values += publish(kafka_settings, 250)
        context = site_at(kafka_settings, tmp_path)
        with running(partial(lake.run, settings), context):
            wait_for(partial(holds, tmp_path / "lake", values))
        assert context.metrics.value("tidemill_lake_rows_total", topic=FEEDBACK.name) >= 250
    assert {value: kept(tmp_path / "lake")[value] for value in values} == dict.fromkeys(values, 1)
    for topic in TOPICS:
        ends = {partition: end for partition, end in end_offsets(kafka_settings, topic, Metrics()).items() if end}
        assert Lake(str(tmp_path / "lake")).positions(topic) == ends


def test_stopping_writes_what_waits(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    values = publish(kafka_settings, 10)
    context = site_at(kafka_settings, tmp_path)
    with running(partial(lake.run, LakeSettings(uri=str(tmp_path / "lake"), flush_rows=10**6, flush_s=3600)), context):
        wait_for(lambda: context.metrics.value("tidemill_consumed_total", topic=FEEDBACK.name, part="lake") >= 10)
        time.sleep(1)
    assert kept(tmp_path / "lake").keys() >= set(values)


def test_a_store_that_cannot_be_written_is_waited_out_and_nothing_is_lost(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    values = publish(kafka_settings, 10)
    today = datetime.now(UTC).date()
    in_the_way = [tmp_path / "lake" / "feedback" / f"day={today + timedelta(days=more)}" for more in range(2)]
    for path in in_the_way:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a file where the day's folder should be: as unwritable as a full disk")
    context = site_at(kafka_settings, tmp_path)
    with running(partial(lake.run, LakeSettings(uri=str(tmp_path / "lake"), flush_s=0.2, retry_s=0.1)), context):
        wait_for(lambda: context.metrics.value("tidemill_lake_failures_total") >= 3)
        values += publish(kafka_settings, 10)
        for path in in_the_way:
            path.unlink()
        wait_for(partial(holds, tmp_path / "lake", values))
    assert {value: kept(tmp_path / "lake")[value] for value in values} == dict.fromkeys(values, 1)
