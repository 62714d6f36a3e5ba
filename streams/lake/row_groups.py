"""Writes Parquet into memory, row group by row group, so that the bytes can be put into their place at once."""

from types import TracebackType
from typing import Any, Self

import pyarrow
import pyarrow.parquet

ROW_GROUP_BYTES = 16 << 20
"""In memory, before compression: what a merge or a rewrite holds beside the file's bytes."""


class RowGroups:
    """Gathers record batches into row groups of about ``ROW_GROUP_BYTES``. ``file`` has the bytes once it is closed."""

    def __init__(self, schema: Any) -> None:
        self._sink = pyarrow.BufferOutputStream()
        self._writer = pyarrow.parquet.ParquetWriter(self._sink, schema, compression="zstd")
        self._waiting: list[Any] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._write()
        self._writer.close()

    def add(self, batch: Any) -> bool:
        """Add rows. True when a row group was full and has been compressed: that is where the time goes."""
        if batch.num_rows:
            self._waiting.append(batch)
            self._bytes += batch.nbytes
        if self._bytes < ROW_GROUP_BYTES:
            return False
        self._write()
        return True

    @property
    def file(self) -> Any:
        """The whole file as a buffer. Only after the end."""
        return self._sink.getvalue()

    def _write(self) -> None:
        if self._waiting:
            self._writer.write_table(pyarrow.Table.from_batches(self._waiting))
        self._waiting, self._bytes = [], 0
