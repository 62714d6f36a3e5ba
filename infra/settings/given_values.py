"""Settings that come as text, from ``--set`` and from the environment: lists and tables in it, and variables that are somebody else's."""

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
    """True for what Kubernetes puts into every pod for each service of its namespace: a service called ``tidemill-actor`` makes
    ``TIDEMILL_ACTOR_PORT=tcp://…``, which looks like a setting and is an address."""
    return _LINK.search(name) is not None or _ADDRESS.match(value) is not None


def values_of(settings: type[BaseModel], keys: Sequence[str], value: str) -> Any:
    """``value`` as the setting at ``keys`` takes it: lists are JSON, or words between commas (none: an empty list); tables are JSON.

    Everything else, and what names no setting, stays text for the settings themselves to read. Raises ConfigError.
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
    """``tuple``, ``dict`` and the like for a setting that holds several values; None for any other."""
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
    """The members of a union, without what is annotated around them."""
    if get_origin(annotation) in (Union, UnionType):
        return [part for member in get_args(annotation) for part in _parts(member)]
    return _parts(get_args(annotation)[0]) if get_origin(annotation) is Annotated else [annotation]
