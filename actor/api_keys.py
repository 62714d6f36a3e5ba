"""API keys with a tenant, scopes and a rate limit, in a file that holds only their hashes. An ASGI layer around all others.

Keys are 256 random bits, so a plain SHA-256 is a safe hash, and a table look-up reveals nothing by its timing. The file is read again when it
changes: a revoked key is refused within a second, without a restart.
"""

import hashlib
import math
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from actor.asgi_replies import reply
from actor.rollout_requests import is_rollout
from streams.core.errors import ConfigError
from streams.core.events import Name, Sha256

ScopeName = Literal["talk", "feedback", "assign", "rollout", "operate"]
OPEN = frozenset({"/healthz", "/readyz", "/chat", "/chat/chat.css", "/chat/chat.js", "/tidemill/openapi.json"})
"""Paths that need no key: load balancers have none, and the chat page and the OpenAPI document hold nothing secret (the page asks for a key)."""
TENANT = "tidemill.tenant"
"""Key of the caller's tenant in the ASGI scope."""
SCOPES = "tidemill.scopes"
"""Key of the caller's scopes in the ASGI scope."""
LOOK_AGAIN_S = 1.0
log = structlog.get_logger()


class Key(BaseModel):
    """One key, as it is stored in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256
    tenant: Name
    scopes: Annotated[tuple[ScopeName, ...], Field(min_length=1)]
    """``talk``: ask for answers. ``feedback``: give feedback and see the tenant's recent episodes. ``assign``: the conversations and people that it
    names decide on which side of a canary an answer falls. ``rollout``: a learner's rollouts. ``operate``: metrics and all else, ``assign`` too."""
    requests_per_minute: int = Field(default=600, ge=1, le=10_000_000)
    """Sustained rate. A burst may have two seconds' worth of requests, and at least ten."""


KEYS = TypeAdapter(tuple[Key, ...])


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read the keys. Raises ConfigError, which names the file and the problem."""
    try:
        return KEYS.validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"actor.keys_file = {path}: {error.strerror}; `tidemill keys add` makes one") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ConfigError(f"actor.keys_file = {path}: {'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}") from None


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Write the file atomically, readable by its owner alone."""
    incoming = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    incoming.touch(mode=0o600)
    incoming.write_bytes(KEYS.dump_json(tuple(keys), indent=1))
    incoming.rename(path)


def new_key() -> tuple[str, str]:
    """A new key, to be shown once, and its hash."""
    key = f"tm-{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


@dataclass
class _Bucket:
    """The rest of a key's rate (token bucket)."""

    tokens: float
    at_s: float


@dataclass(frozen=True)
class Refusal:
    """The reply to a caller who is refused."""

    status: int
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Keys:
    """Admits or refuses callers. ``now_s``: a monotonic clock."""

    def __init__(self, path: Path, now_s: Callable[[], float] = time.monotonic) -> None:
        self._path, self._now_s = path, now_s
        self._buckets: dict[str, _Bucket] = {}
        self._stamp = self._stamp_now()
        self._looked_s = now_s()
        self._keys = {key.sha256: key for key in read_keys(path)}

    def admit(self, authorization: str | None, needed: ScopeName) -> Key | Refusal:
        """The caller's key, or a refusal. ``authorization``: the header's value."""
        self._look_again()
        scheme, _, given = (authorization or "").partition(" ")
        key = self._keys.get(hashlib.sha256(given.strip().encode(errors="replace")).hexdigest()) if scheme.lower() == "bearer" else None
        if key is None:
            return Refusal(401, "no such key: send `Authorization: Bearer …` with a key of this server", ((b"www-authenticate", b"Bearer"),))
        if needed not in key.scopes:
            return Refusal(403, f"this key may {' and '.join(key.scopes)}; that needs {needed}")
        if (wait_s := self._wait_s(key)) > 0:
            seconds = str(math.ceil(wait_s)).encode()
            return Refusal(429, f"more than {key.requests_per_minute} requests a minute with this key", ((b"retry-after", seconds),))
        return key

    def _wait_s(self, key: Key) -> float:
        """Take one request from the key's bucket. Returns 0, or the seconds to wait when it is empty."""
        rate, now_s = key.requests_per_minute / 60, self._now_s()
        most = max(10.0, 2 * rate)
        bucket = self._buckets.setdefault(key.sha256, _Bucket(most, now_s))
        bucket.tokens, bucket.at_s = min(most, bucket.tokens + (now_s - bucket.at_s) * rate), now_s
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / rate
        bucket.tokens -= 1
        return 0.0

    def _look_again(self) -> None:
        if self._now_s() - self._looked_s < LOOK_AGAIN_S:
            return
        self._looked_s = self._now_s()
        if (stamp := self._stamp_now()) == self._stamp:
            return
        try:
            self._keys = {key.sha256: key for key in read_keys(self._path)}
            self._stamp = stamp
        except ConfigError as error:  # half edited by hand: keep the keys that were read before, and log it
            log.error("keys_not_read", error=str(error))

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


class KeyGate:
    """The ASGI layer: admits callers whose key has the scope that the path needs, and stores their tenant in the ASGI scope."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        authorization = next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"authorization"), None)
        found = self._keys.admit(authorization, needed_for(scope["path"], is_rollout(scope)))
        if isinstance(found, Key):
            await self._app({**scope, TENANT: found.tenant, SCOPES: found.scopes}, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await reply(send, found.status, {"error": {"message": found.message, "type": "invalid_request_error"}}, found.headers)


def needed_for(path: str, rollout: bool = False) -> ScopeName:
    """The scope that a key needs for this path; ``rollout``: the request says that it asks for a learner's rollouts."""
    if path == "/v1/feedback" or path.startswith("/v1/episodes/"):
        return "feedback"
    talk: ScopeName = "rollout" if rollout else "talk"
    return talk if path.startswith("/v1/") else "operate"


def tenant_of(scope: Any) -> str:
    """The caller's tenant; ``default`` when no keys are required."""
    return str(scope.get(TENANT, "default"))


def may_assign(scope: Any) -> bool:
    """Whether what the caller says of conversations and people decides on which side of a canary it falls: everybody's where no keys are required."""
    scopes = scope.get(SCOPES)
    return scopes is None or bool({"assign", "operate"} & set(scopes))
