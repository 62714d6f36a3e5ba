"""The lake: every record of every topic as Parquet by topic and day, written exactly once, and replay from it.

A file's name holds its offsets, and a file appears whole or not at all. So the names are the lake's commit log: a writer continues after the
highest offset that it finds, and offsets are stored nowhere else. Records are kept unchanged, also those that cannot be decoded.
"""

import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pyarrow
import pyarrow.fs
import pyarrow.parquet

from streams.core.errors import BadArtifact, ConfigError, InvalidEvent, Unavailable
from streams.core.events import Event
from streams.core.topics import Topic
from streams.kafka import Record

E = TypeVar("E", bound=Event)
DAY_MS = 86_400_000
LAST_MS = 32_503_680_000_000  # the year 3000
EPOCH = date(1970, 1, 1)
SCHEMA = pyarrow.schema(
    [
        pyarrow.field("offset", pyarrow.int64(), nullable=False),
        pyarrow.field("timestamp", pyarrow.timestamp("ms", "UTC"), nullable=False),
        pyarrow.field("key", pyarrow.binary()),
        pyarrow.field("value", pyarrow.binary()),
    ]
)
NAME = re.compile(r"day=(\d{4}-\d\d-\d\d)/(\d+)-(\d+)-(\d+)\.parquet$")
UNFINISHED = re.compile(r"/\.[0-9a-f]{32}\.tmp$")
OBJECT_STORES = ("s3", "gcs", "abfs")


@dataclass(frozen=True, slots=True)
class LakeFile:
    """One file, as its name says: records ``first`` to ``last`` of a partition, of one UTC day."""

    path: str
    day: date
    partition: int
    first: int
    last: int


class Lake:
    """Writes batches of records and reads them back. Raises Unavailable when the store cannot be used now."""

    def __init__(self, uri: str) -> None:
        try:
            absolute = uri if "://" in uri else Path(uri).expanduser().resolve().as_uri()
            self._filesystem, self._root = pyarrow.fs.FileSystem.from_uri(absolute)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ConfigError(f"lake.uri = {uri!r} is not a place pyarrow.fs can open: {error}") from None

    def files(self, topic: Topic[Any]) -> list[LakeFile]:
        """The topic's files by partition and first offset; of two with the same first offset the longer one comes first."""
        selector = pyarrow.fs.FileSelector(f"{self._root}/{topic.short_name}", recursive=True, allow_not_found=True)
        found = []
        try:
            for info in self._filesystem.get_file_info(selector):
                if (named := NAME.search(info.path)) is not None:
                    day, partition, first, last = named.groups()
                    found.append(LakeFile(info.path, date.fromisoformat(day), int(partition), int(first), int(last)))
        except OSError as error:
            raise Unavailable(f"cannot list the lake at {self._root}: {error}") from error
        return sorted(found, key=lambda file: (file.partition, file.first, -file.last))

    def positions(self, topic: Topic[Any]) -> dict[int, int]:
        """Next offset to write, by partition."""
        return {file.partition: file.last + 1 for file in sorted(self.files(topic), key=lambda file: file.last)}

    def delete_unfinished(self, topic: Topic[Any]) -> None:
        """Delete files that a killed writer left unfinished."""
        selector = pyarrow.fs.FileSelector(f"{self._root}/{topic.short_name}", recursive=True, allow_not_found=True)
        try:
            for info in self._filesystem.get_file_info(selector):
                if UNFINISHED.search(info.path):
                    self._filesystem.delete_file(info.path)
        except OSError as error:
            raise Unavailable(f"cannot tidy the lake at {self._root}: {error}") from error

    def prune(self, topic: Topic[Any], before: date) -> int:
        """Delete files of earlier days and return their number. The newest of each partition stays: its name tells where to continue."""
        files = self.files(topic)
        newest = {file.partition: file.path for file in sorted(files, key=lambda file: file.last)}
        old = [file for file in files if file.day < before and file.path != newest[file.partition]]
        try:
            for file in old:
                self._filesystem.delete_file(file.path)
        except OSError as error:
            raise Unavailable(f"cannot delete from the lake at {self._root}: {error}") from error
        return len(old)

    def write(self, topic: Topic[Any], records: Sequence[Record]) -> list[LakeFile]:
        """Write records of one partition, in offset order, to one file per day. Writing the same records again overwrites the same files."""
        written = []
        for day, rows in groupby(records, key=_day):
            batch = list(rows)
            partition, first, last = batch[0].partition, batch[0].offset, batch[-1].offset
            path = f"{self._root}/{topic.short_name}/day={day.isoformat()}/{partition:03}-{first:012}-{last:012}.parquet"
            self._write(path, _table(batch))
            written.append(LakeFile(path, day, partition, first, last))
        return written

    def records(self, topic: Topic[Any], since: datetime | None = None, until: datetime | None = None) -> Iterator[Record]:
        """The lake's records, each offset once, in offset order within a partition, one partition after the other.

        ``since`` (included) and ``until`` (not included) are arrival times in the log.
        """
        first_ms, end_ms = _ms(since, 0), _ms(until, LAST_MS + 1)
        first_day, last_day = EPOCH + timedelta(days=first_ms // DAY_MS), EPOCH + timedelta(days=end_ms // DAY_MS)
        partition, seen = -1, -1
        for file in self.files(topic):
            if file.partition != partition:
                partition, seen = file.partition, -1
            if file.last <= seen or not first_day <= file.day <= last_day:
                continue
            for record in self.records_of(topic, file):
                if record.offset > seen and first_ms <= record.timestamp_ms < end_ms:
                    yield record
            seen = file.last

    def records_of(self, topic: Topic[Any], file: LakeFile) -> Iterator[Record]:
        """The records of one file, in offset order."""
        for batch in self._batches(file):
            columns = [batch.column(name).to_pylist() for name in ("offset", "key", "value")]
            times = batch.column("timestamp").cast(pyarrow.int64()).to_pylist()
            for offset, key, value, timestamp_ms in zip(*columns, times, strict=True):
                yield Record(topic.name, file.partition, offset, timestamp_ms, key, value)

    def rewrite(self, file: LakeFile, records: Sequence[Record]) -> None:
        """Replace a file by the same offsets with other values, atomically."""
        self._write(file.path, _table(records))

    def replay(self, topic: Topic[E], since: datetime | None = None, until: datetime | None = None) -> Iterator[E]:
        """The events that can be decoded. The other records are in ``records`` and among the dead letters."""
        for record in self.records(topic, since, until):
            try:
                yield topic.decode(record.value)
            except InvalidEvent:
                continue

    def _batches(self, file: LakeFile) -> Iterator[Any]:
        try:
            with self._filesystem.open_input_file(file.path) as source, pyarrow.parquet.ParquetFile(source) as parquet:
                if not parquet.schema_arrow.equals(SCHEMA):
                    raise BadArtifact(f"{file.path} holds other columns than the lake's: {', '.join(parquet.schema_arrow.names)}")
                yield from parquet.iter_batches(batch_size=4096)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # the latter where a byte within a column's name is damaged
            raise BadArtifact(f"{file.path} is not the Parquet file that was written: {error}") from error
        except OSError as error:
            raise Unavailable(f"cannot read {file.path}: {error}") from error

    def _write(self, path: str, table: Any) -> None:
        """Write atomically: an object store shows an object only when it is complete; elsewhere a rename does the same."""
        whole = self._filesystem.type_name in OBJECT_STORES
        target = path if whole else f"{path.rpartition('/')[0]}/.{uuid.uuid4().hex}.tmp"
        try:
            if not whole:
                self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            try:
                pyarrow.parquet.write_table(table, target, filesystem=self._filesystem, compression="zstd")
                if not whole:
                    self._sync(target)
                    self._filesystem.move(target, path)
            except OSError:
                if not whole and self._filesystem.get_file_info(target).type != pyarrow.fs.FileType.NotFound:
                    self._filesystem.delete_file(target)
                raise
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error}") from error

    def _sync(self, path: str) -> None:
        """fsync before the rename: after a power cut, a name without its bytes would be a silent loss."""
        if isinstance(self._filesystem, pyarrow.fs.LocalFileSystem):
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _table(records: Iterable[Record]) -> Any:
    rows = [(r.offset, min(max(r.timestamp_ms, 0), LAST_MS), r.key, r.value) for r in records]
    columns = [pyarrow.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    return pyarrow.Table.from_arrays(columns, schema=SCHEMA)


def _day(record: Record) -> date:
    return EPOCH + timedelta(days=min(max(record.timestamp_ms, 0), LAST_MS) // DAY_MS)


def _ms(time: datetime | None, default: int) -> int:
    return default if time is None else (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
