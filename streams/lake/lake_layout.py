"""What a file of the lake holds: each record as it came, and beside it the columns of its event.

``offset``, ``timestamp`` (arrival on the log), ``key`` and ``value`` are the record, bit for bit; they are all that older files have, and all that
replay reads. ``partition``, ``invalid_reason`` and the event's own fields are for other tools.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow

from streams.core.topics import Topic
from streams.kafka import Record
from streams.lake.event_columns import EventColumns
from streams.lake.rows_in_hand import RowsInHand

RECORD = pyarrow.schema(
    [
        pyarrow.field("offset", pyarrow.int64(), nullable=False),
        pyarrow.field("timestamp", pyarrow.timestamp("ms", "UTC"), nullable=False),
        pyarrow.field("key", pyarrow.binary()),
        pyarrow.field("value", pyarrow.binary()),
    ]
)
"""The record itself: the first columns of every file."""
LAST_MS = 32_503_680_000_000  # the year 3000
CHUNK_ROWS, CHUNK_BYTES = 250, 32 << 20
"""At most so many events are decoded at a time: they take several times the memory of their bytes, and Python's collector looks at all of them."""


class LakeLayout:
    """The columns of one topic's files."""

    def __init__(self, topic: Topic[Any], rows: RowsInHand | None = None) -> None:
        """``rows``: of the writer, which must outlive what a record does to it."""
        self._topic, self._columns, self._rows = topic.name, EventColumns(topic.event), rows
        told = [pyarrow.field("partition", pyarrow.int32(), nullable=False), pyarrow.field("invalid_reason", pyarrow.string())]
        self.schema = pyarrow.schema([*RECORD, *told, *self._columns.fields])

    def batches(self, records: Sequence[Record]) -> Iterator[Any]:
        """The records with their columns, as record batches of a bounded size."""
        chunk: list[Record] = []
        size = 0
        for record in records:
            chunk.append(record)
            size += len(record.value or b"")
            if len(chunk) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield self._batch(chunk)
                chunk, size = [], 0
        if chunk:
            yield self._batch(chunk)

    def records(self, batch: Any, partition: int) -> list[Record]:
        """The records of a batch that has at least the columns of ``RECORD``."""
        columns = [batch.column(name).to_pylist() for name in ("offset", "key", "value")]
        times = batch.column("timestamp").cast(pyarrow.int64()).to_pylist()
        return [Record(self._topic, partition, offset, ms, key, value) for offset, key, value, ms in zip(*columns, times, strict=True)]

    def _batch(self, records: Sequence[Record]) -> Any:
        rows = [(r.offset, calendar_ms(r), r.key, r.value, r.partition) for r in records]
        kinds = [*RECORD.types, pyarrow.int32()]
        record = [pyarrow.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
        if self._rows is None:
            reasons, columns = self._columns.of([r.value for r in records])
        else:
            reasons, columns = self._rows.columns(self._columns, self._topic, records)
        return pyarrow.RecordBatch.from_arrays([*record, pyarrow.array(reasons, pyarrow.string()), *columns], schema=self.schema)


def calendar_ms(record: Record) -> int:
    """When it arrived on the log, in milliseconds, moved to between 1970 and 3000: a producer may write any number."""
    return min(max(record.timestamp_ms, 0), LAST_MS)
