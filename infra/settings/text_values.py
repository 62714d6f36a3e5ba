"""Converts settings that arrive as text (``--set``, environment), and recognises variables that are not ours."""

import json
import re
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

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


def _kind_at(settings: type[BaseModel], keys: Sequence[str]) -> Any:
    """The container type (``tuple``, ``dict``, …) of a setting that holds several values; None for any other."""
    model: Any = settings
    for depth, key in enumerate(keys):
        field = model.model_fields.get(key)
        if field is None:
            return None
        kinds = list(_parts(field.annotation))
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if depth == len(keys) - 1:
            return next((get_origin(kind) or kind for kind in kinds if (get_origin(kind) or kind) in (*_LISTS, dict)), None)
        if not models:
            return None
        model = models[0]
    return None


def _parts(annotation: Any) -> Sequence[Any]:
    """The members of a union, without ``Annotated``."""
    if get_origin(annotation) in (Union, UnionType):
        return [part for member in get_args(annotation) for part in _parts(member)]
    return _parts(get_args(annotation)[0]) if get_origin(annotation) is Annotated else [annotation]
