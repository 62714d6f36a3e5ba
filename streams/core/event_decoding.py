"""The base of all events: frozen, with a Kafka key, encoded as JSON. Decoding foreign bytes gives an event or one InvalidEvent with its reason."""

import json
from collections.abc import Iterable
from functools import reduce
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from streams.core.errors import InvalidEvent
from streams.core.person_ids import as_utf_8, plain_id, whole_text

M = TypeVar("M", bound=BaseModel)
_write = object.__setattr__
_BOM = b"\xef\xbb\xbf"
MOST_LEVELS = 150
"""An event is kept inside others, in the state of parts and in records, and pydantic's reader takes 200 levels at most."""
_IDS = frozenset({"episode_id", "feedback_id", "over", "retracts", "replies_to", "tool_call_id"})
_FRAME = 5
"""Bytes that a schema registry's serialisers put before the JSON: a zero byte and the schema's number in four bytes."""


class Event(BaseModel):
    """Base of all events: frozen, with a key, encoded as JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)
    key_fields: ClassVar[tuple[str, ...]]

    schema_version: Literal[1] = 1

    @property
    def key(self) -> str:
        """The Kafka key. Events with the same key keep their order, and a compacted topic keeps the last of them."""
        fields = self.key_fields
        return str(getattr(self, fields[0])) if len(fields) == 1 else "/".join([str(getattr(self, field)) for field in fields])

    def encode(self) -> bytes:
        """UTF-8 JSON without the fields that are null. Half a surrogate pair, which UTF-8 cannot carry, becomes U+FFFD. Raises InvalidEvent for
        what is nested too deeply."""
        try:
            return self.__pydantic_serializer__.to_json(self, exclude_none=True)  # model_dump_json makes a str of these very bytes
        except ValueError:  # pydantic's own for text is one
            pass
        try:
            whole = type(self).model_validate(whole_text(self.model_dump(exclude_none=True)))
            return whole.__pydantic_serializer__.to_json(whole, exclude_none=True)
        except (ValueError, RecursionError) as error:
            raise InvalidEvent("invalid", f"{type(self).__name__}: cannot be written as JSON ({type(error).__name__}): nested too deeply?") from None

    @classmethod
    def decode(cls, raw: bytes | None) -> Self:
        """Parse and validate. Raises InvalidEvent with reason ``empty``, ``not_json``, ``unknown_version`` or ``invalid``, and nothing else:
        whatever foreign bytes make fail is their fault."""
        if not raw:
            raise InvalidEvent("empty", f"{cls.__name__}: the record has no value")
        raw = _bare(raw)
        try:
            event = cls.model_validate_json(raw)
        except ValidationError as error:
            repaired = _with_whole_characters(raw) if _reason(error) == "not_json" else _with_written_ids(raw, error)
            if repaired is not None:
                return cls.decode(repaired)
            raise InvalidEvent(_reason(error), f"{cls.__name__}: {_summary(error)}{_hint(raw)}") from None
        except RecursionError:
            raise InvalidEvent("not_json", f"{cls.__name__}: nested too deeply") from None
        except Exception as error:  # noqa: BLE001 - the boundary to bytes that anybody may write
            raise InvalidEvent("invalid", f"{cls.__name__}: {type(error).__name__}") from None
        if raw.count(b"{") + raw.count(b"[") > MOST_LEVELS and nested_too_deeply(event):
            raise InvalidEvent("invalid", f"{cls.__name__}: nested in more than {MOST_LEVELS} levels")
        return event


def nested_too_deeply(value: Any, most: int = MOST_LEVELS) -> bool:
    """True for JSON, or an event, of more levels than ``most``."""
    level = [value]
    for _ in range(most):
        level = [each for outer in level for each in _inside(outer) if isinstance(each, dict | list | tuple | BaseModel)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, BaseModel):
        return (*value.__dict__.values(), *(value.__pydantic_extra__ or {}).values())
    return value.values() if isinstance(value, dict) else value


def of_valid(model: type[M], values: dict[str, Any], fields: set[str]) -> M:
    """An instance of values that have passed the same rules in other events: no rule is tried again, which would take most of the time.
    ``values`` holds every field, in the order of the model; ``fields`` are their names."""
    made = model.__new__(model)
    _write(made, "__dict__", values)
    _write(made, "__pydantic_fields_set__", fields)
    _write(made, "__pydantic_extra__", None)
    _write(made, "__pydantic_private__", None)
    return made


def _bare(raw: bytes) -> bytes:
    """The JSON itself in UTF-8, without a byte order mark or a schema registry's frame around it."""
    if raw.startswith(_BOM):
        return raw[len(_BOM) :]
    return raw[_FRAME:] if raw[0] == 0 and raw[_FRAME : _FRAME + 1] == b"{" else as_utf_8(raw)


def _hint(raw: bytes) -> str:
    return "; the value begins with a schema registry's frame: send plain JSON" if raw[:1] == b"\0" else ""


def _with_whole_characters(raw: bytes) -> bytes | None:
    """JSON in which U+FFFD stands for each half of a surrogate pair, which some writers escape (``\\ud83d``); None where that is not its fault."""
    if b"\\u" not in raw:
        return None
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return json.dumps(whole_text(given), ensure_ascii=False).encode()


def _with_written_ids(raw: bytes, error: ValidationError) -> bytes | None:
    """JSON in which ids that are numbers, as databases give them, are text; None where that is not all that is wrong."""
    problems = error.errors(include_url=False, include_context=False)
    if not all(p["type"] == "string_type" and p["loc"][-1] in _IDS and type(p["input"]) is int for p in problems):
        return None
    tree: Any = json.loads(raw)
    for problem in problems:
        *path, name = problem["loc"]
        holder = reduce(lambda inner, step: inner[step], path, tree)
        holder[name] = plain_id(problem["input"])
    return json.dumps(tree).encode()


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return "not_json"
    return "unknown_version" if first["loc"] == ("schema_version",) else "invalid"


def _summary(error: ValidationError) -> str:
    """The first three problems, without the values: a value may contain what a person said."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    told = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'record'}: {p['msg']}" for p in problems[:3])
    return told + (f" (and {len(problems) - 3} more)" if len(problems) > 3 else "")
