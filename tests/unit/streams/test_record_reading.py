"""Compiled code reads from a fetch what kafka-python itself reads from it."""

import kafka
import pytest
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.record.util import calc_crc32c

from streams.kafka import Record
from streams.kafka.record_reading import CompiledRecords

PLACE = kafka.TopicPartition("episodes", 3)
GZIP, CONTROL = 1, DefaultRecordBatch.CONTROL_MASK
ROWS: list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]] = [
    (1_700_000_000_000, b"ep-1", b'{"a": 1}', []),
    (1_700_000_000_007, b"", b"", [("traceparent", b"00-aa"), ("empty", b""), ("none", None)]),
    (1_699_999_999_999, None, b"\x00\xff" * 700, []),
    (1_700_000_000_500, b"gone", None, [("größe", b"x")]),
]


def batch(first: int, codec: int = 0) -> bytearray:
    """The rows as a batch that begins at that offset, as a broker gives it."""
    builder = MemoryRecordsBuilder(2, codec, 1 << 20)
    for timestamp, key, value, headers in ROWS:
        builder.append(timestamp, key, value, headers)
    builder.close()
    made = bytearray(builder.buffer())
    made[:8] = first.to_bytes(8, "big")  # outside of what the checksum covers
    return made


def control(first: int) -> bytearray:
    """The end of somebody's transaction, which is no record for readers."""
    made = batch(first)
    made[22] |= CONTROL  # of the attributes, the lower byte
    made[17:21] = calc_crc32c(memoryview(made)[21:]).to_bytes(4, "big")
    return made


@pytest.mark.parametrize("start", [10, 12, 14, 19])
def test_it_reads_what_kafka_python_reads(start: int) -> None:
    fetched = bytes(batch(10) + control(14) + batch(18, GZIP) + batch(30))
    theirs = Fetcher.PartitionRecords(start, PLACE, MemoryRecords(fetched))
    ours = CompiledRecords(start, PLACE, MemoryRecords(fetched))
    right = [Record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in theirs.take(2) + theirs.take(1000)]
    assert ours.take(2) + ours.take(1000) == right
    assert (ours.next_fetch_offset, ours.records_read) == (theirs.next_fetch_offset, theirs.records_read)
    assert right[-1].offset == 33


def test_a_batch_with_a_wrong_byte_is_refused_and_what_came_before_it_is_read() -> None:
    broken = batch(14)
    broken[100] ^= 1
    reader = CompiledRecords(10, PLACE, MemoryRecords(bytes(batch(10) + broken)))
    assert [record.offset for record in reader.take(100)] == [10, 11, 12, 13]
    with pytest.raises(CorruptRecordError):
        reader.take(100)
