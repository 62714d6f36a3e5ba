"""Typed, nested columns of an event, worked out from its one definition in ``streams/core/events.py``, for tools that read the lake's files.

| the field is | its column is |
|---|---|
| text, an id, one of several words | string |
| a whole number, a number, true or false | int64, double, bool |
| a time | timestamp in UTC, microseconds |
| several of these, a value made of fields, a mapping | list, struct, map |
| anything (``Any``), or text or something else | JSON as a string; text stays as it is |

Fields of a value that has no definition for them (of a message, say) are JSON in its field ``extra``.
"""

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow
from pydantic import AwareDatetime, BaseModel
from pydantic_core import to_json

from streams.core.errors import InvalidEvent
from streams.core.event_decoding import Event
from streams.core.poison_records import blamed_on_record

EXTRA = "extra"
OUT_OF_RANGE = "out_of_range"
"""The reason of an event with a number that no column can hold, such as 10**30."""
TIME = pyarrow.timestamp("us", "UTC")
SCALARS: dict[Any, Any] = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), datetime: TIME, AwareDatetime: TIME}


@dataclass(frozen=True, slots=True)
class Column:
    """A column's type in Arrow, and what Arrow takes for a value of the event; None stays None."""

    kind: Any
    plain: Callable[[Any], Any]


class EventColumns:
    """The columns of one kind of event."""

    def __init__(self, event: type[Event]) -> None:
        self._event = event
        self._columns = _fields(event)
        self.fields = [pyarrow.field(name, column.kind) for name, column in self._columns.items()]

    def of(self, values: Sequence[bytes | None]) -> tuple[list[str | None], list[Any]]:
        """For each value the reason why it has no columns, or None; and the columns as Arrow's arrays, null where there is a reason.

        A record without a value (a tombstone, or what an erasure left) has neither.
        """
        events: list[Event | None] = []
        reasons: list[str | None] = []
        for value in values:
            event, reason = self._decoded(value)
            events.append(event)
            reasons.append(reason)
        try:
            return reasons, self._arrays(events)
        except InvalidEvent:
            for number, event in enumerate(events):  # one of them is at fault
                try:
                    self._arrays([event])
                except InvalidEvent:
                    events[number], reasons[number] = None, OUT_OF_RANGE
            return reasons, self._arrays(events)

    def _decoded(self, value: bytes | None) -> tuple[Event | None, str | None]:
        if value is None:
            return None, None
        try:
            return self._event.decode(value), None
        except InvalidEvent as error:
            return None, error.reason

    def _arrays(self, events: Sequence[Event | None]) -> list[Any]:
        with blamed_on_record("the lake's columns"):
            return [
                pyarrow.array([None if event is None else column.plain(getattr(event, name)) for event in events], column.kind)
                for name, column in self._columns.items()
            ]


def _fields(model: type[BaseModel]) -> dict[str, Column]:
    return {name: _column(field.annotation) for name, field in model.model_fields.items()}


def _column(annotation: Any) -> Column:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _column(arguments[0])
    if origin in (Union, types.UnionType):
        given = [each for each in arguments if each is not type(None)]
        return _column(given[0]) if len(given) == 1 else _JSON
    if origin is Literal:
        return _column(type(arguments[0]))
    if origin is tuple and arguments[1:] == (...,):
        return _list(_column(arguments[0]))
    if origin is dict:
        return _map(_column(arguments[0]), _column(arguments[1]))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _struct(annotation)
    if isinstance(annotation, type) and issubclass(annotation, str):
        return _TEXT
    if annotation in SCALARS:
        return Column(SCALARS[annotation], _as_it_is)
    if annotation is Any:
        return _JSON
    raise TypeError(f"streams/lake/event_columns.py knows no column for {annotation}")


def _list(item: Column) -> Column:
    kind, plain = pyarrow.list_(pyarrow.field("element", item.kind)), item.plain
    if plain is _as_it_is:
        return Column(kind, _as_it_is)
    return Column(kind, lambda values: None if values is None else [plain(value) for value in values])


def _map(key: Column, item: Column) -> Column:
    if item is _JSON:  # its values may differ in kind
        return _JSON
    plain = item.plain
    return Column(pyarrow.map_(key.kind, item.kind), lambda values: None if values is None else [(k, plain(v)) for k, v in values.items()])


def _struct(model: type[BaseModel]) -> Column:
    columns = _fields(model)
    open_ended = model.model_config.get("extra") == "allow"
    kinds = [pyarrow.field(name, column.kind) for name, column in columns.items()]

    def plain(value: Any) -> Any:
        if value is None:
            return None
        told = {name: column.plain(getattr(value, name)) for name, column in columns.items()}
        return told | {EXTRA: _json(value.model_extra) if value.model_extra else None} if open_ended else told

    return Column(pyarrow.struct([*kinds, pyarrow.field(EXTRA, pyarrow.string())] if open_ended else kinds), plain)


def _as_it_is(value: Any) -> Any:
    return value


def _json(value: Any) -> str | None:
    """Text as it is, anything else as JSON. Numbers that JSON does not know (NaN) are null."""
    return value if value is None or isinstance(value, str) else to_json(value, inf_nan_mode="null").decode()


_TEXT = Column(pyarrow.string(), _as_it_is)
_JSON = Column(pyarrow.string(), _json)
