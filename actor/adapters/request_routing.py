"""Decides which adapter answers which request. Pure bookkeeping, used only from the server's event loop."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field

from streams.core.values import Assignment

BASE = "base"
"""The model name of the base."""
_TINKER = re.compile(r"tinker://(?P<policy>[^/]+)/(?:sampler_weights|weights)/(?P<version>[0-9]{1,9})")


@dataclass(frozen=True)
class Route:
    """The adapters that answer for the policy. All of them are attested."""

    production: str | None = None
    """None: the base."""
    candidate: str | None = None
    """The adapter on trial, which clients reach as ``policy@candidate``."""
    canary_share: float = 0.0
    """Part of the conversations that the candidate answers."""
    production_share: float = 1.0
    """Part of the other conversations that production answers. While it is new, the rest are held back on ``before``, for comparison."""
    before: str | None = None
    """The adapter that answers held-back conversations: the production before. None: the base."""
    kept: tuple[str, ...] = ()
    """Further adapters that stay loaded, so that a roll-back is immediate."""


@dataclass
class Router:
    """Turns the model that a client asked for into the name that vLLM serves it by.

    ``default`` is production (the base until there is one) or, for the canary's share of conversations, the candidate, or, for those that are held
    back while production is new, the one before it;
    ``default@candidate`` the adapter on trial, ``default@7`` that version, ``default@0`` and ``base`` the base.
    ``tinker://default/sampler_weights/7`` (Tinker's, as its clients write it) means ``default@7``. Anything else is left for vLLM to refuse.
    """

    policy: str
    route: Route = Route()
    room: int = 0
    """Adapters without traffic stay loaded while the total is at most this."""
    _sha256: dict[str, str] = field(default_factory=dict)
    """Checksum by loaded adapter, least recently used first."""
    _in_flight: Counter[str] = field(default_factory=Counter)

    def resolve(self, model: object, conversation: str | None = None) -> object:
        """vLLM's name for a request's ``model``; other models are returned unchanged. A conversation always gets the same side of a canary."""
        return self.assign(model, conversation)[0]

    def assign(self, model: object, conversation: str | None = None) -> tuple[object, Assignment]:
        """The same, and how it was chosen."""
        route = self.route
        if model is None or model in ("", self.policy):
            if conversation is None:
                return route.production or BASE, "asked"
            if route.candidate and draw(route.candidate, conversation) < route.canary_share:
                return route.candidate, "drawn"
            if draw(route.production or BASE, conversation) >= route.production_share:
                return route.before or BASE, "held_back"
            return route.production or BASE, "drawn"
        return self._named(model), "asked"

    def _named(self, model: object) -> object:
        route = self.route
        if model == f"{self.policy}@candidate" and route.candidate:
            return route.candidate
        if isinstance(model, str) and (path := _TINKER.fullmatch(model)) and path["policy"] == self.policy:
            model = f"{self.policy}@{int(path['version'])}"
        return BASE if model == f"{self.policy}@0" else model

    def why_not_loaded(self, name: object) -> str | None:
        """The message for a request for a version that is not loaded here; None for all other models."""
        policy, _, version = name.rpartition("@") if isinstance(name, str) else ("", "", "")
        if policy != self.policy or name in self._sha256:
            return None
        if version == "candidate":
            return f"no adapter of {policy} is on trial"
        return f"{name} is not loaded on this replica; loaded: {', '.join([*self._sha256, BASE])}" if version.isdecimal() else None

    def add(self, name: str, sha256: str) -> None:
        """Allow requests for an attested adapter by its version."""
        self._sha256[name] = sha256

    def loaded(self, name: object) -> str | None:
        """``name`` if it is a loaded adapter; None for the base and for other models."""
        return name if isinstance(name, str) and name in self._sha256 else None

    def sha256(self, name: str | None) -> str | None:
        """Checksum of a loaded adapter."""
        return self._sha256.get(name) if name else None

    def begin(self, name: object) -> None:
        """Count the start of a request to this name."""
        self._in_flight[str(name)] += 1
        if str(name) in self._sha256:
            self._sha256[str(name)] = self._sha256.pop(str(name))

    def end(self, name: object) -> None:
        """Count the end of a request."""
        self._in_flight[str(name)] -= 1
        if self._in_flight[str(name)] <= 0:  # clients may make up names without end
            del self._in_flight[str(name)]

    def idle(self) -> list[str]:
        """Adapters to unload, least recently used first: without route, not kept, without a request in flight, and beyond ``room``."""
        needed = (self.route.production, self.route.candidate, self.route.before, *self.route.kept)
        spare = [name for name in self._sha256 if name not in needed and self._in_flight[name] <= 0]
        return spare[: max(0, len(self._sha256) - self.room)]

    def remove(self, name: str) -> None:
        """Remove an adapter that is about to be unloaded. vLLM refuses further requests for it."""
        del self._sha256[name]
        del self._in_flight[name]


def draw(candidate: str, conversation: str) -> float:
    """A number in [0, 1) from a hash of candidate and conversation: constant during a trial, different in each trial, the same on every replica."""
    return int.from_bytes(hashlib.sha256(f"{candidate} {conversation}".encode(errors="replace")).digest()[:8], "big") / 2**64
