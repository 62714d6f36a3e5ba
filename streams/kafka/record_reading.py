"""Reads record batches with compiled code. kafka-python reads them byte by byte in Python, which costs as much as all of the join's own work.

The reader is aiokafka's, which Faust stands on anyway. kafka-python still fetches, checks each batch's checksum, skips control batches, and reads
what is compressed. Where its inner workings are not as they are known here, it reads everything (``Consumer.poll`` takes both kinds of records).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError

from streams.core.traces import Headers


class Record(msgspec.Struct, frozen=True):
    """One record of the log."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def read_compiled(consumer: Any) -> None:
    """From now on this ``kafka.KafkaConsumer`` gives Record instead of its own."""
    if isinstance(fetcher := getattr(consumer, "_fetcher", None), Fetcher):
        fetcher.PartitionRecords = CompiledRecords


class CompiledRecords(Fetcher.PartitionRecords):
    """The records of one fetch from one partition."""

    def _unpack_records(self, tp: Any, records: Any, key_deserializer: Any, value_deserializer: Any) -> Iterator[Record]:
        """Called once, by the constructor of the class above, and read lazily."""
        topic, partition = tp
        last = None
        while (batch := records.next_batch()) is not None:
            last = batch
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(f"the batch of {topic}/{partition} at offset {batch.base_offset} does not have its checksum")
            if batch.magic == 2:
                self.leader_epoch = batch.leader_epoch
                if batch.is_control_batch:
                    self.next_fetch_offset = batch.next_offset
                    continue
            for record in _read(batch) if batch.magic == 2 and batch.compression_type == 0 else batch:
                self.records_read += 1
                self.next_fetch_offset = record.offset + 1
                yield Record(topic, partition, record.offset, record.timestamp, record.key, record.value, tuple(record.headers))
            self.bytes_read += batch.size_in_bytes
        if last is not None and last.magic == 2:  # over what compaction has taken from the end of the batch
            self.next_fetch_offset = last.next_offset
        self.drain()


def _read(batch: Any) -> Iterable[Any]:
    """The batch's records by compiled code, or the batch itself, which reads them too: also those with names of headers that are no UTF-8."""
    try:
        return list(DefaultRecordBatch(bytes(batch._buffer)))
    except (CorruptRecordException, ValueError, IndexError):
        return batch
