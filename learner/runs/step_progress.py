"""Progress of the current step. The learner's process writes it to a file about once a second; loop, status and console read it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Phase = Literal["waiting", "rollout", "score", "train"]
PHASES: tuple[Phase, ...] = ("rollout", "score", "train")
FIRST_GUESS: dict[Phase, float] = {"rollout": 1.0, "score": 0.15, "train": 1.5}
"""Assumed duration of a first step's phases relative to its rollouts. From the second step on, the last step's seconds are used."""
PROGRESS_FILE = "progress.json"
"""In the learner's state folder."""
EVERY_S = 1.0
OLD_S = 180.0
"""After this long without progress, the sentence says so."""


class LearnerProgress(BaseModel):
    """What the learner is doing now."""

    model_config = ConfigDict(frozen=True)

    step: int
    """The current step, or the next one while the learner waits; the first is 1."""
    phase: Phase
    done_tokens: int = 0
    all_tokens: int = 0
    """All tokens of the phase. During rollouts this is an upper bound, which falls when answers end early."""
    left_s: float | None = Field(default=None, ge=0)
    """Estimated seconds at ``at`` until the whole step is done. None: not known yet."""
    prompts: int = 0
    prompts_needed: int = 0
    """While it waits: how many distinct prompts it has, and how many it needs."""
    for_labels: bool = False
    """True while it waits for a label on an answer of a recent version (``learner.steps_without_labels``)."""
    at: datetime

    def sentence(self, now: datetime) -> str:
        """One sentence for terminals and pages."""
        if self.phase == "waiting":
            return f"waits before step {self.step}" + (" for a label on an answer of its newest versions" if self.for_labels else "")
        told = f"step {self.step}: {self.phase}, {self.done_tokens:,} of {self.all_tokens:,} tokens"
        silent_s = (now - self.at).total_seconds()
        if silent_s > OLD_S:
            return f"{told}; nothing new for {silent_s / 60:.0f} min"
        return told if self.left_s is None else f"{told}, about {max(1.0, self.left_s - silent_s):.0f} s left"

    def write(self, path: Path) -> None:
        """Write the file and rename it into place, so that readers never see half of it. Creates the folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        incoming = path.with_suffix(".incoming")
        incoming.write_text(self.model_dump_json())
        incoming.rename(path)


def read_progress(path: Path) -> LearnerProgress | None:
    """The last progress written. None when there is none, or when it cannot be read."""
    try:
        return LearnerProgress.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


class StepTeller:
    """Receives progress from a trainer, and reports it with an estimate of the time left."""

    def __init__(self, tell: Callable[[LearnerProgress], None], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock_s = tell, clock_s
        self._took_s: dict[Phase, float] = {}
        """Seconds of each phase, in this step or the last."""
        self._step, self._phase, self._began_s, self._told_s = 0, PHASES[0], 0.0, 0.0
        self._done = self._all = 0

    def begin(self, step: int, phase: Phase, all_tokens: int) -> None:
        """Begin a phase; this ends the previous one."""
        now_s = self._clock_s()
        if self._step == step:
            self._took_s[self._phase] = now_s - self._began_s
        self._step, self._phase, self._began_s = step, phase, now_s
        self._done, self._all = 0, all_tokens
        self._pass_on(now_s)

    def done(self, tokens: int, all_tokens: int | None = None) -> None:
        """Report tokens done. ``all_tokens``: a new total for the phase."""
        self._done, self._all = tokens, self._all if all_tokens is None else all_tokens
        if (now_s := self._clock_s()) - self._told_s >= EVERY_S:
            self._pass_on(now_s)

    def end(self) -> None:
        """End the step."""
        self._took_s[self._phase] = self._clock_s() - self._began_s
        self._step = 0

    def left_s(self) -> float | None:
        """Seconds until the step is done, from the pace of this phase and the last durations of the later ones. None: not known yet."""
        spent_s, part = self._clock_s() - self._began_s, self._done / self._all if self._all else 0.0
        whole_s = spent_s / part if part > 0 else self._guess(self._phase)
        if whole_s is None:
            return None
        later = [self._guess(phase, whole_s) for phase in PHASES[PHASES.index(self._phase) + 1 :]]
        return max(0.0, whole_s - spent_s) + sum(one for one in later if one is not None)

    def _guess(self, phase: Phase, in_hand_s: float | None = None) -> float | None:
        """Estimated duration of a phase: as in the last step; in a first step, from the current phase or from the rollouts."""
        if phase in self._took_s:
            return self._took_s[phase]
        if "rollout" in self._took_s:
            return self._took_s["rollout"] * FIRST_GUESS[phase]
        return None if in_hand_s is None else in_hand_s * FIRST_GUESS[phase] / FIRST_GUESS[self._phase]

    def _pass_on(self, now_s: float) -> None:
        self._told_s = now_s
        self._tell(LearnerProgress(step=self._step, phase=self._phase, done_tokens=self._done, all_tokens=self._all, left_s=self.left_s(),
                                   at=datetime.now(UTC)))  # fmt: skip


def tell_nobody(_: LearnerProgress) -> None:
    """For a trainer without progress display."""
