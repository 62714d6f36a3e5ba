"""Records whose headers have names that are no UTF-8. Kafka takes any bytes and so do clients in other languages; kafka-python calls such a record
corrupt, and its reader would stand before it for ever."""

from typing import Any

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch


class AnyHeaderNames(DefaultRecordBatch):
    """A batch that has U+FFFD for what is no UTF-8 in the names of headers."""

    __slots__ = ()

    def _read_msg(self, *args: Any) -> Any:
        try:
            return super()._read_msg(*args)
        except UnicodeDecodeError:
            self._buffer = _LenientBytes(self._buffer)  # type: ignore[misc, has-type]  # the position is still the record's beginning
            return super()._read_msg(*args)


class _LenientBytes(bytearray):
    """Bytes whose slices can always be decoded."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _LenientText(found) if isinstance(found, bytearray) else found


class _LenientText(bytearray):
    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, "replace")


def read_any_header_names() -> None:
    """From now on this process's kafka-python reads such records."""
    memory_records.DefaultRecordBatch = AnyHeaderNames
