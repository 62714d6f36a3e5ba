"""The prompts to learn on: what people asked lately, each once, no more than so many."""

import json
import random
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from learner.trainer import Prompt
from streams.events import Episode, Message, Outcome

PROMPTS = TypeAdapter(list[tuple[Message, ...]])


class PromptPool:
    """The most recent distinct prompts of one policy. Asking again makes a prompt recent again."""

    def __init__(self, policy: str, kept: int) -> None:
        self._policy, self._kept = policy, kept
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prompts)

    def take(self, episode: Episode) -> None:
        """Remember what was asked. Faults of the infrastructure, other policies and turns that no person took are left out."""
        usable = episode.messages and episode.messages[-1].role == "user" and not episode.tools and not episode.tool_calls
        if episode.policy == self._policy and episode.outcome is not Outcome.FAILED and usable:
            self._add(episode.messages)

    def choose(self, count: int, seed: int, step: int) -> Sequence[Prompt]:
        """At most ``count`` prompts, drawn without replacement; the same for the same pool, seed and step."""
        return random.Random(f"{seed}:{step}").sample(list(self._prompts.values()), min(count, len(self._prompts)))

    def save(self, path: Path) -> None:
        """Write the pool, oldest first; renamed into place."""
        incoming = path.with_suffix(".incoming")
        incoming.write_bytes(PROMPTS.dump_json(list(self._prompts.values())))
        incoming.rename(path)

    def load(self, path: Path) -> None:
        """Read a saved pool, if there is one."""
        if path.exists():
            for prompt in PROMPTS.validate_json(path.read_bytes()):
                self._add(prompt)

    def _add(self, prompt: Prompt) -> None:
        key = json.dumps([(message.role, message.text) for message in prompt])
        self._prompts[key] = prompt
        self._prompts.move_to_end(key)
        while len(self._prompts) > self._kept:
            self._prompts.popitem(last=False)
