"""The lake: every record of every topic as Parquet by topic and day, written exactly once, and replay from it.

A file's name holds its offsets, and a file appears whole or not at all. So the names are the lake's commit log: a writer continues after the
highest offset that it finds, and offsets are stored nowhere else. Records are kept unchanged, also those that cannot be decoded; beside them are
the columns of their events (``lake_layout.py``). One writer at a time; readers may read meanwhile.
"""

import os
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pyarrow
import pyarrow.compute
import pyarrow.fs
import pyarrow.parquet

from streams.core.errors import BadArtifact, ConfigError, InvalidEvent, Unavailable
from streams.core.events import Event
from streams.core.topics import Topic
from streams.kafka import Record
from streams.lake.lake_file import UNFINISHED, LakeFile, covered, in_reading_order
from streams.lake.lake_layout import LAST_MS, RECORD, LakeLayout, calendar_ms
from streams.lake.row_groups import RowGroups
from streams.lake.rows_in_hand import RowsInHand

E = TypeVar("E", bound=Event)
DAY_MS = 86_400_000
EPOCH = date(1970, 1, 1)
OBJECT_STORES = ("s3", "gcs", "abfs")


class FileGone(Unavailable):
    """A file that was there a moment ago was merged into another one, or its time was over."""


class Lake:
    """Writes batches of records and reads them back. Raises Unavailable when the store cannot be used now."""

    def __init__(self, uri: str, batch_rows: int = 1024, rows: RowsInHand | None = None) -> None:
        """``batch_rows`` are read from a file at a time."""
        self._batch_rows, self._layout = batch_rows, cache(lambda topic: LakeLayout(topic, rows))
        try:
            absolute = uri if "://" in uri else Path(uri).expanduser().resolve().as_uri()
            self._filesystem, self._root = pyarrow.fs.FileSystem.from_uri(absolute)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ConfigError(f"lake.uri = {uri!r} is not a place pyarrow.fs can open: {error}") from None

    def files(self, topic: Topic[Any]) -> list[LakeFile]:
        """The topic's files, in reading order. One that is covered by the file before it is not needed any more."""
        return _files(self._listed(topic))

    def positions(self, topic: Topic[Any]) -> dict[int, int]:
        """Next offset to write, by partition."""
        return {file.partition: file.last + 1 for file in sorted(self.files(topic), key=lambda file: file.last)}

    def tidy(self, topic: Topic[Any]) -> list[LakeFile]:
        """Delete what a kill left, unfinished files and files that were merged already, and return the others. Only for the writer."""
        infos = self._listed(topic)
        for info in infos:
            if UNFINISHED.search(info.path):
                self._delete(info.path)
        files = _files(infos)
        merged = set(covered(files))
        for file in merged:
            self._delete(file.path)
        return [file for file in files if file not in merged]

    def prune(self, topic: Topic[Any], before: date) -> int:
        """Delete files of earlier days and return their number. The newest of each partition stays: its name tells where to continue."""
        files = self.files(topic)
        newest = {file.partition: file.path for file in sorted(files, key=lambda file: file.last)}
        old = [file for file in files if file.day < before and file.path != newest[file.partition]]
        for file in old:
            self._delete(file.path)
        return len(old)

    def write(self, topic: Topic[Any], records: Sequence[Record]) -> list[LakeFile]:
        """Write records of one partition, in offset order, to one file per day. Writing the same records again overwrites the same files."""
        written, layout = [], self._layout(topic)
        for day, rows in groupby(records, key=_day):
            batch = list(rows)
            file = LakeFile.at(self._folder(topic), day, batch[0].partition, batch[0].offset, batch[-1].offset)
            with RowGroups(layout.schema) as groups:
                for each in layout.batches(batch):
                    groups.add(each)
            self._put(file.path, groups.file)
            written.append(file)
        return written

    def records(
        self, topic: Topic[Any], since: datetime | None = None, until: datetime | None = None, partition: int | None = None
    ) -> Iterator[Record]:
        """The lake's records, each offset once, in offset order within a partition, one partition after the other; also while files are merged.

        ``since`` (included) and ``until`` (not included) are arrival times in the log. ``partition``: of this one alone.
        """
        first_ms, end_ms = _ms(since, 0), _ms(until, LAST_MS + 1)
        first_day, last_day = EPOCH + timedelta(days=first_ms // DAY_MS), EPOCH + timedelta(days=end_ms // DAY_MS)
        at, seen, gone = -1, -1, ""
        files = deque(each for each in self.files(topic) if partition in (None, each.partition))
        while files:
            file = files.popleft()
            if file.partition != at:
                at, seen = file.partition, -1
            if file.last <= seen or not first_day <= file.day <= last_day:
                continue
            try:
                for record in self.records_of(topic, file):
                    if record.offset > seen:
                        seen = record.offset
                        if first_ms <= record.timestamp_ms < end_ms:
                            yield record
            except FileGone:
                if file.path == gone:  # listed again, and still not there
                    raise
                gone = file.path
                later = [each for each in self.files(topic) if (each.partition, each.last) > (at, seen)]
                files = deque(each for each in later if partition in (None, each.partition))
                continue
            seen = file.last

    def records_of(self, topic: Topic[Any], file: LakeFile) -> Iterator[Record]:
        """The records of one file, in offset order. Raises FileGone, BadArtifact."""
        with self._opened(file) as parquet:
            for batch in parquet.iter_batches(self._batch_rows, columns=RECORD.names):
                yield from self._layout(topic).records(batch, file.partition)

    def rewrite(self, topic: Topic[Any], file: LakeFile, change: Callable[[Record], Record]) -> None:
        """Replace a file by the same offsets with other values, atomically: what ``change`` makes of each record."""
        layout = self._layout(topic)
        with RowGroups(layout.schema) as groups, self._opened(file) as parquet:
            for batch in parquet.iter_batches(self._batch_rows, columns=RECORD.names):
                for changed in layout.batches([change(record) for record in layout.records(batch, file.partition)]):
                    groups.add(changed)
        self._put(file.path, groups.file)

    def merge(self, topic: Topic[Any], run: Sequence[LakeFile]) -> Iterator[None]:
        """Write files that follow each other, of one partition and day, as one, then delete them.

        It pauses often, for the caller to do something else that leaves these files alone. Given up at any pause, or killed anywhere, it has lost
        and doubled nothing: what it has not deleted yet is covered by the merged file. Raises BadArtifact.
        """
        seen = -1
        with RowGroups(self._layout(topic).schema) as groups:
            for file in run:
                for batch in self._batches(topic, file):
                    if groups.add(batch.filter(pyarrow.compute.greater(batch.column("offset"), seen)) if file.first <= seen else batch):
                        yield
                seen = max(seen, file.last)
                yield
        merged = LakeFile.at(self._folder(topic), run[0].day, run[0].partition, run[0].first, seen)
        self._put(merged.path, groups.file)
        for file in run:
            yield
            self._delete(file.path)

    def replay(self, topic: Topic[E], since: datetime | None = None, until: datetime | None = None) -> Iterator[E]:
        """The events that can be decoded. The other records are in ``records`` and among the dead letters."""
        for record in self.records(topic, since, until):
            try:
                yield topic.decode(record.value)
            except InvalidEvent:
                continue

    def _folder(self, topic: Topic[Any]) -> str:
        return f"{self._root}/{topic.short_name}"

    def _listed(self, topic: Topic[Any]) -> list[Any]:
        try:
            found: list[Any] = self._filesystem.get_file_info(pyarrow.fs.FileSelector(self._folder(topic), recursive=True, allow_not_found=True))
        except OSError as error:
            raise Unavailable(f"cannot list the lake at {self._root}: {error}") from error
        return found

    def _batches(self, topic: Topic[Any], file: LakeFile) -> Iterator[Any]:
        """A file's rows in today's layout: as they are, or worked out anew where the file is of another one."""
        layout = self._layout(topic)
        with self._opened(file) as parquet:
            if parquet.schema_arrow.equals(layout.schema):
                yield from parquet.iter_batches(self._batch_rows)
                return
            for batch in parquet.iter_batches(self._batch_rows, columns=RECORD.names):
                yield from layout.batches(layout.records(batch, file.partition))

    @contextmanager
    def _opened(self, file: LakeFile) -> Iterator[Any]:
        try:
            with self._filesystem.open_input_file(file.path) as source, pyarrow.parquet.ParquetFile(source) as parquet:
                schema = parquet.schema_arrow
                if pyarrow.schema(list(schema)[: len(RECORD)]) != RECORD:
                    raise BadArtifact(f"{file.path} holds other columns than the lake's: {', '.join(schema.names)}")
                yield parquet
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:  # the latter where a byte within a column's name is damaged
            raise BadArtifact(f"{file.path} is not the Parquet file that was written: {error}") from error
        except FileNotFoundError as error:
            raise FileGone(f"{file.path} is gone: {error}") from error
        except OSError as error:
            raise Unavailable(f"cannot read {file.path}: {error}") from error

    def _put(self, path: str, content: Any) -> None:
        """Write atomically: an object store shows an object only when it is complete; elsewhere a rename does the same."""
        whole = self._filesystem.type_name in OBJECT_STORES
        folder = path.rpartition("/")[0]
        target = path if whole else f"{folder}/.{uuid.uuid4().hex}.tmp"
        try:
            if not whole:
                self._filesystem.create_dir(folder, recursive=True)
            try:
                with self._filesystem.open_output_stream(target) as stream:
                    stream.write(content)
                if not whole:
                    self._sync(target)
                    self._filesystem.move(target, path)
                    self._sync(folder)
            except OSError:
                if not whole and self._filesystem.get_file_info(target).type != pyarrow.fs.FileType.NotFound:
                    self._filesystem.delete_file(target)
                raise
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error}") from error

    def _sync(self, path: str) -> None:
        """fsync a file before its rename, and its folder after it: after a power cut, a name without its bytes would be a silent loss."""
        if self._filesystem.type_name == "local":
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _delete(self, path: str) -> None:
        try:
            self._filesystem.delete_file(path)
        except OSError as error:
            raise Unavailable(f"cannot delete {path}: {error}") from error


def _files(infos: Iterable[Any]) -> list[LakeFile]:
    return in_reading_order(file for info in infos if (file := LakeFile.named(info.path, info.size or 0)) is not None)


def _day(record: Record) -> date:
    return EPOCH + timedelta(days=calendar_ms(record) // DAY_MS)


def _ms(time: datetime | None, default: int) -> int:
    return default if time is None else (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
