"""Which adapter answers whom: pure bookkeeping, touched only from the server's event loop."""

from collections import Counter
from dataclasses import dataclass, field

BASE = "base"
"""The name that the base answers to."""


@dataclass
class Router:
    """Turns the model that a client asked for into the name that vLLM serves it by.

    ``default`` is the live adapter (the base until there is one), ``default@7`` that version where it is loaded,
    ``default@0`` and ``base`` the base. Anything else is left for vLLM to refuse.
    """

    policy: str
    live: str | None = None
    previous: str | None = None
    _sha256: dict[str, str] = field(default_factory=dict)
    _in_flight: Counter[str] = field(default_factory=Counter)

    def resolve(self, model: object) -> object:
        """vLLM's name for what a request's ``model`` says; what is not ours comes back as it was."""
        if model is None or model in ("", self.policy):
            return self.live or BASE
        return BASE if model == f"{self.policy}@0" else model

    def add(self, name: str, sha256: str) -> None:
        """An adapter was attested and may be asked for by its version."""
        self._sha256[name] = sha256

    def go_live(self, name: str) -> None:
        """From now on this adapter answers for the policy."""
        self.previous, self.live = self.live, name

    def sha256(self, name: str | None) -> str | None:
        """Checksum of a loaded adapter."""
        return self._sha256.get(name) if name else None

    def begin(self, name: object) -> None:
        """A request to this name starts."""
        self._in_flight[str(name)] += 1

    def end(self, name: object) -> None:
        """It is over."""
        self._in_flight[str(name)] -= 1

    def idle(self) -> list[str]:
        """Adapters that nobody needs: neither live nor the one before, and no request in flight."""
        return [name for name in self._sha256 if name not in (self.live, self.previous) and self._in_flight[name] <= 0]

    def forget(self, name: str) -> None:
        """The adapter is about to be unloaded: further requests for it are vLLM's to refuse."""
        del self._sha256[name]
        del self._in_flight[name]
