"""Headers that other clients write: names that are no UTF-8, and no value at all. Kafka takes both."""

from typing import Any

import pytest
from kafka.consumer.fetcher import Fetcher
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.structs import TopicPartition

from streams.core.traces import TRACEPARENT, context_as_text
from streams.kafka.header_names import read_any_header_names
from streams.kafka.record_reading import CompiledRecords

NAME, MARK = b"x-caf\xe9!", b"x-cafe!"


def batch(compression: int, headers: list[list[Any]]) -> bytes:
    """A batch as Kafka sends it, of a record for each list of headers, with MARK in their names replaced by NAME."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=compression, is_transactional=False, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 20
    )
    for offset, each in enumerate(headers):
        builder.append(offset, timestamp=7, key=b"k", value=b"v%d" % offset, headers=each)
    builder._buffer = bytearray(bytes(builder._buffer).replace(MARK, NAME))
    return bytes(builder.build())


@pytest.mark.parametrize("reader", [Fetcher.PartitionRecords, CompiledRecords])
@pytest.mark.parametrize("compression", [0, 1])
def test_a_header_whose_name_is_no_utf_8_holds_up_no_reader(compression: int, reader: Any) -> None:
    read_any_header_names()
    raw = batch(compression, [[("a", b"1")], [(MARK.decode(), b"2"), (TRACEPARENT, None)], [], [("b", b"3")]])
    assert compression or NAME in raw
    place = TopicPartition("t", 0)
    records = reader(0, place, MemoryRecords(raw)).take()
    assert [(record.offset, record.value) for record in records] == [(0, b"v0"), (1, b"v1"), (2, b"v2"), (3, b"v3")]
    assert list(records[1].headers) == [("x-caf\ufffd!", b"2"), (TRACEPARENT, None)]
    assert list(records[3].headers) == [("b", b"3")]


def test_a_trace_context_without_a_value_is_none() -> None:
    assert context_as_text(((TRACEPARENT, None), ("other", b"x"))) == ""  # type: ignore[arg-type]
