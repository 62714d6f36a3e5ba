"""Bounds how far the learner goes on without hearing what people think of its newest versions. Pure.

The reward model knows what people said of answers. A policy that has moved on gives other answers, and a learner that outruns its labels follows the
reward model to where it was never corrected. So a number of steps may be taken without a label on an answer of a recent version, and then one is
waited for.
"""

import json
from pathlib import Path

from streams.core.events import AdapterVersion, Label

FILE = "fresh-labels.json"


class FreshLabels:
    """Steps by version, and the step at which the last label on a recent version came."""

    def __init__(self, most_steps: int, recent_steps: int) -> None:
        """``most_steps`` without such a label; 0: no bound. A version counts as recent within ``recent_steps`` steps of the newest."""
        self._most, self._recent = most_steps, recent_steps
        self._steps: dict[str, int] = {}
        self.heard_at = 0
        """Steps that had been taken when the last label on a recent version came."""

    @property
    def bounds(self) -> bool:
        """False where there is no bound, and labels need not be read for it."""
        return self._most > 0

    def note_version(self, adapter: AdapterVersion) -> None:
        """A version and the step that made it. Only the recent ones are kept."""
        self._steps[adapter.name] = adapter.step
        oldest = max(self._steps.values()) - self._recent
        self._steps = {name: step for name, step in self._steps.items() if step >= oldest}

    def note_label(self, label: Label, steps: int) -> None:
        """A label that came after so many ``steps``. The base's answers are of step 0. A label without verdict and words says nothing."""
        step = 0 if label.adapter is None else self._steps.get(label.adapter)
        if label.votes and step is not None and steps - step <= self._recent:
            self.heard_at = max(self.heard_at, steps)

    def lacking(self, steps: int) -> bool:
        """True when, after so many steps, another must wait for a label."""
        return self.bounds and steps - self.heard_at >= self._most

    def save(self, state: Path) -> None:
        """Write what must survive a restart; renamed into place."""
        incoming = state / f".{FILE}"
        incoming.write_text(json.dumps({"heard_at": self.heard_at}))
        incoming.rename(state / FILE)

    def load(self, state: Path) -> None:
        """Read what was saved, if anything was."""
        if (state / FILE).exists():
            self.heard_at = int(json.loads((state / FILE).read_text())["heard_at"])
