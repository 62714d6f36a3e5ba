"""Requests of a learner for rollouts: told by a header, allowed by a key's scope, answered after people, and never an episode."""

from typing import Any, Final

HEADER: Final = b"x-tidemill-rollout"
"""The learner's step. Whoever sends it asks for answers to learn from, not to read."""
PRIORITY: Final = 1
"""vLLM answers the smallest first; people have 0."""


def is_rollout(scope: Any) -> bool:
    """Whether this HTTP request asks for rollouts."""
    return scope["type"] == "http" and any(name.lower() == HEADER for name, _ in scope["headers"])


def with_priority(body: dict[str, Any], rollout: bool) -> dict[str, Any]:
    """The request with the priority that is due to it: a client does not choose its own."""
    rest = {name: value for name, value in body.items() if name != "priority"}
    return rest | {"priority": PRIORITY} if rollout else rest
