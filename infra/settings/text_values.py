"""Converts settings that arrive as text (``--set``, environment) or from a file elsewhere, and recognises variables that are not ours."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

from streams.core.errors import ConfigError

_LINK = re.compile(
    r"(?<!_)_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT(?:_START|_END)?|ADDR|START|END))?|ENV_\w+)$",
    re.IGNORECASE,
)
_ADDRESS, _PORT = re.compile(r"^(?:tcp|udp|sctp)://"), re.compile(r"(?<!_)_PORT$", re.IGNORECASE)
_ALIAS, _NAME = re.compile(r"^/[\w.-]+/[\w.-]+$"), re.compile(r"(?<!_)_NAME$", re.IGNORECASE)
_LISTS = (tuple, list, set, frozenset)


def is_service_link(name: str, value: str) -> bool:
    """True for variables that Kubernetes adds to every pod for each service of the namespace, and Docker for linked containers. A service called
    ``tidemill-actor`` gives ``TIDEMILL_ACTOR_PORT=tcp://…``, which looks like a setting but is an address. A double underscore is ours."""
    ends = [(_PORT, _ADDRESS), (_NAME, _ALIAS)]
    return _LINK.search(name) is not None or any(end.search(name) and said.match(value) for end, said in ends)


def values_of(settings: type[BaseModel], keys: Sequence[str], value: str) -> Any:
    """``value`` converted for the setting at ``keys``: lists from JSON or comma-separated words (empty text: an empty list), tables from JSON, and
    ``null`` where a setting may be none. Quotes around a value, which files of variables keep, are left out, but of secrets.

    Other values, and values of unknown settings, stay text; the settings convert or refuse them. Raises ConfigError.
    """
    kinds = _kinds_at(settings, keys)
    kind = next((get_origin(each) or each for each in kinds if (get_origin(each) or each) in (*_LISTS, dict)), None)
    text = value.strip() if SecretStr in kinds else _unquoted(value.strip())
    if type(None) in kinds and text == "null":
        return None
    if kind is dict or (kind in _LISTS and text.startswith("[")):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{'.'.join(keys)} = {value!r} is not JSON ({error})") from None
    if kind in _LISTS:
        return [_unquoted(word.strip()) for word in text.split(",") if word.strip()]
    return value if text == value.strip() else text


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1] else text


def rebased(settings: type[BaseModel], tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """``tree`` with its relative paths counted from ``folder``: settings of the type Path, and those called ``uri`` that name no scheme."""
    found = dict(tree)
    for key, value in tree.items():
        if (field := settings.model_fields.get(key)) is None:
            continue
        kinds, model, words = parts_of(field.annotation), section_of(field.annotation), words_of(field.annotation)
        if isinstance(value, Mapping) and model is not None:
            found[key] = rebased(model, value, folder)
        elif isinstance(value, str) and value not in words and (Path in kinds or (key.endswith("uri") and "://" not in value)):
            found[key] = str(folder / value)
    return found


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds; None for a plain setting."""
    return next((kind for kind in parts_of(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def words_of(annotation: Any) -> list[Any]:
    """The values that a field names one by one."""
    return [word for kind in parts_of(annotation) if get_origin(kind) is Literal for word in get_args(kind)]


def _kinds_at(settings: type[BaseModel], keys: Sequence[str]) -> Sequence[Any]:
    """What a setting may be, one by one; empty where there is no such setting."""
    model: Any = settings
    for depth, key in enumerate(keys):
        field = model.model_fields.get(key)
        if field is None:
            return ()
        if depth == len(keys) - 1:
            return parts_of(field.annotation)
        if (model := section_of(field.annotation)) is None:
            return ()
    return ()


def parts_of(annotation: Any) -> Sequence[Any]:
    """The members of a union, without ``Annotated``."""
    if get_origin(annotation) in (Union, UnionType):
        return [part for member in get_args(annotation) for part in parts_of(member)]
    return parts_of(get_args(annotation)[0]) if get_origin(annotation) is Annotated else [annotation]
