"""Which adapter answers whom: pure bookkeeping, touched only from the server's event loop."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field

BASE = "base"
"""The name that the base answers to."""
_TINKER = re.compile(r"tinker://(?P<policy>[^/]+)/(?:sampler_weights|weights)/(?P<version>[0-9]{1,9})")


@dataclass(frozen=True)
class Route:
    """Who answers for the policy. Only names of adapters that were attested."""

    production: str | None = None
    """None: the base."""
    candidate: str | None = None
    """The adapter on trial, which ``policy@candidate`` asks for."""
    canary_share: float = 0.0
    """Part of the conversations that the candidate answers."""
    production_share: float = 1.0
    """Part of the other conversations that production answers; while it is new, the rest are held back to compare it with."""
    before: str | None = None
    """Who answers those that are held back: the production before; None: the base."""
    kept: tuple[str, ...] = ()
    """Further adapters that stay loaded, to go back to at once."""


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
    """Adapters that stay loaded though nobody is routed to them, as long as there are no more than so many in all."""
    _sha256: dict[str, str] = field(default_factory=dict)
    """Of the loaded adapters; who was asked last comes last."""
    _in_flight: Counter[str] = field(default_factory=Counter)

    def resolve(self, model: object, conversation: str | None = None) -> object:
        """vLLM's name for what a request's ``model`` says; what is not ours comes back as it was. One conversation always gets the same side."""
        route = self.route
        if model is None or model in ("", self.policy):
            if conversation is not None and route.candidate and draw(route.candidate, conversation) < route.canary_share:
                return route.candidate
            if conversation is not None and draw(route.production or BASE, conversation) >= route.production_share:
                return route.before or BASE
            return route.production or BASE
        if model == f"{self.policy}@candidate" and route.candidate:
            return route.candidate
        if isinstance(model, str) and (path := _TINKER.fullmatch(model)) and path["policy"] == self.policy:
            model = f"{self.policy}@{int(path['version'])}"
        return BASE if model == f"{self.policy}@0" else model

    def why_not_loaded(self, name: object) -> str | None:
        """What to tell who asks for a version that is not loaded here; None for all else."""
        policy, _, version = name.rpartition("@") if isinstance(name, str) else ("", "", "")
        if policy != self.policy or name in self._sha256:
            return None
        if version == "candidate":
            return f"no adapter of {policy} is on trial"
        return f"{name} is not loaded on this replica; loaded: {', '.join([*self._sha256, BASE])}" if version.isdecimal() else None

    def add(self, name: str, sha256: str) -> None:
        """An adapter was attested and may be asked for by its version."""
        self._sha256[name] = sha256

    def loaded(self, name: object) -> str | None:
        """The name, where it is a loaded adapter's; None is the base, or nothing of ours."""
        return name if isinstance(name, str) and name in self._sha256 else None

    def sha256(self, name: str | None) -> str | None:
        """Checksum of a loaded adapter."""
        return self._sha256.get(name) if name else None

    def begin(self, name: object) -> None:
        """A request to this name starts."""
        self._in_flight[str(name)] += 1
        if str(name) in self._sha256:
            self._sha256[str(name)] = self._sha256.pop(str(name))

    def end(self, name: object) -> None:
        """It is over."""
        self._in_flight[str(name)] -= 1
        if self._in_flight[str(name)] <= 0:  # clients may make up names without end
            del self._in_flight[str(name)]

    def idle(self) -> list[str]:
        """Adapters that must go, least recently used first: not routed to, not kept, no request in flight, and too many for the room."""
        needed = (self.route.production, self.route.candidate, self.route.before, *self.route.kept)
        spare = [name for name in self._sha256 if name not in needed and self._in_flight[name] <= 0]
        return spare[: max(0, len(self._sha256) - self.room)]

    def remove(self, name: str) -> None:
        """The adapter is about to be unloaded: further requests for it are vLLM's to refuse."""
        del self._sha256[name]
        del self._in_flight[name]


def draw(candidate: str, conversation: str) -> float:
    """A number in [0, 1) that belongs to this conversation for as long as this adapter is on trial; each trial draws anew, on every replica alike."""
    return int.from_bytes(hashlib.sha256(f"{candidate} {conversation}".encode(errors="replace")).digest()[:8], "big") / 2**64
