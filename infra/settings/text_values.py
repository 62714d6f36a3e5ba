"""Converts settings that arrive as text (``--set``, environment) or from a file elsewhere, and recognises variables that are not ours."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from streams.core.errors import ConfigError

_LINK = re.compile(r"_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)$", re.IGNORECASE)
_ADDRESS = re.compile(r"^(?:tcp|udp|sctp)://")
_LISTS = (tuple, list, set, frozenset)


def is_service_link(name: str, value: str) -> bool:
    """True for variables that Kubernetes adds to every pod for each service of the namespace. A service called ``tidemill-actor`` gives
    ``TIDEMILL_ACTOR_PORT=tcp://…``, which looks like a setting but is an address."""
    return _LINK.search(name) is not None or _ADDRESS.match(value) is not None


def values_of(settings: type[BaseModel], keys: Sequence[str], value: str) -> Any:
    """``value`` converted for the setting at ``keys``: lists from JSON or comma-separated words (empty text: an empty list), tables from JSON.

    Other values, and values of unknown settings, stay text; the settings convert or refuse them. Raises ConfigError.
    """
    kind = _kind_at(settings, keys)
    text = value.strip()
    if kind is dict or (kind in _LISTS and text.startswith("[")):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{'.'.join(keys)} = {value!r} is not JSON ({error})") from None
    if kind in _LISTS:
        return [word.strip() for word in text.split(",") if word.strip()]
    return value


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


def _kind_at(settings: type[BaseModel], keys: Sequence[str]) -> Any:
    """The container type (``tuple``, ``dict``, …) of a setting that holds several values; None for any other."""
    model: Any = settings
    for depth, key in enumerate(keys):
        field = model.model_fields.get(key)
        if field is None:
            return None
        kinds = list(parts_of(field.annotation))
        if depth == len(keys) - 1:
            return next((get_origin(kind) or kind for kind in kinds if (get_origin(kind) or kind) in (*_LISTS, dict)), None)
        if (model := section_of(field.annotation)) is None:
            return None
    return None


def parts_of(annotation: Any) -> Sequence[Any]:
    """The members of a union, without ``Annotated``."""
    if get_origin(annotation) in (Union, UnionType):
        return [part for member in get_args(annotation) for part in parts_of(member)]
    return parts_of(get_args(annotation)[0]) if get_origin(annotation) is Annotated else [annotation]
