"""The prompts to train on: people's most recent distinct questions, up to a limit."""

import hashlib
import random
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from streams.core.chat_prompt import Prompt, content_key
from streams.core.events import Episode, Outcome, person_of

NOBODY = "-"


class Kept(BaseModel):
    """A prompt and the people who asked it."""

    prompt: Prompt
    askers: tuple[str, ...]


KEPT = TypeAdapter(list[Kept])


class PromptPool:
    """The most recent distinct prompts of one policy. Asking again makes a prompt recent again."""

    def __init__(self, policy: str, kept: int, with_tools: bool = False, held_out_ratio: float = 0.0) -> None:
        """``with_tools``: also prompts that offer tools, or that a tool's result ends. ``held_out_ratio``: part that is never chosen to train on."""
        self._policy, self._kept, self._with_tools, self._held_out_ratio = policy, kept, with_tools, held_out_ratio
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._askers: dict[str, frozenset[str]] = {}
        """The people who asked each prompt, as hashes; ``NOBODY`` when it was asked without a user_id."""

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, episode: Episode) -> str | None:
        """Add the episode's prompt. Ignores failed answers, other policies, and turns that were not a person's. Returns why a person's prompt
        cannot be rendered again, where that is so."""
        plain = episode.messages and episode.messages[-1].role == "user" and not episode.tools and not episode.tool_calls
        usable = plain or (self._with_tools and episode.messages and episode.messages[-1].role in ("user", "tool"))
        if episode.policy != self._policy or episode.outcome is Outcome.FAILED or not usable:
            return None
        if episode.render_fault is None:
            self._add(episode.prompt, frozenset({person_of(episode.user_id)} if episode.user_id is not None else {NOBODY}))
        return episode.render_fault

    def erase_person(self, person: str) -> int:
        """Remove prompts that only this person asked (SHA-256 of their user_id). Returns their number."""
        gone = [key for key, askers in self._askers.items() if askers == {person}]
        for key in gone:
            del self._prompts[key], self._askers[key]
        self._askers = {key: askers - {person} for key, askers in self._askers.items()}
        return len(gone)

    def choose(self, count: int, seed: int, step: int) -> Sequence[Prompt]:
        """At most ``count`` prompts, drawn without replacement; the same for the same pool, seed and step."""
        drawn_from = [prompt for key, prompt in self._prompts.items() if not self._is_held_out(key)]
        return random.Random(f"{seed}:{step}").sample(drawn_from, min(count, len(drawn_from)))

    def held_out(self, count: int) -> Sequence[Prompt]:
        """At most ``count`` held-out prompts, in an order of their own, so that few of them change as others come and go."""
        held = sorted((_share(key), key) for key in self._prompts if self._is_held_out(key))
        return [self._prompts[key] for _, key in held[:count]]

    def holds_out(self, prompt: Prompt) -> bool:
        """True for a prompt that is never trained on."""
        return self._is_held_out(content_key(prompt))

    def _is_held_out(self, key: str) -> bool:
        return self._held_out_ratio > 0 and _share(key) < self._held_out_ratio

    def save(self, path: Path) -> None:
        """Write the pool, oldest first; renamed into place."""
        incoming = path.with_suffix(".incoming")
        kept = [Kept(prompt=prompt, askers=tuple(sorted(self._askers[key]))) for key, prompt in self._prompts.items()]
        incoming.write_bytes(KEPT.dump_json(kept))
        incoming.rename(path)

    def load(self, path: Path) -> bool:
        """Read a saved pool. False when there is none, or one without the people: then the episodes must be read again."""
        try:
            kept = KEPT.validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return False
        for each in kept:
            self._add(each.prompt, frozenset(each.askers))
        return True

    def _add(self, prompt: Prompt, askers: frozenset[str]) -> None:
        key = content_key(prompt)
        self._prompts[key] = prompt
        self._prompts.move_to_end(key)
        self._askers[key] = self._askers.get(key, frozenset()) | askers
        while len(self._prompts) > self._kept:
            del self._askers[self._prompts.popitem(last=False)[0]]


def _share(key: str) -> float:
    """A number in [0, 1) from a prompt's content alone."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="replace")).digest()[:8], "big") / 2**64
