"""How far the step in hand is. The learner's process writes it to a file, about once a second; the loop, status and console read it there."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Phase = Literal["waiting", "rollout", "score", "train"]
PHASES: tuple[Phase, ...] = ("rollout", "score", "train")
FIRST_GUESS: dict[Phase, float] = {"rollout": 1.0, "score": 0.15, "train": 1.5}
"""What a first step's phases take beside its rollouts; from the second step on the last one's seconds are taken."""
PROGRESS_FILE = "progress.json"
"""In the learner's state folder."""
EVERY_S = 1.0
OLD_S = 180.0
"""A step that has told nothing for so long says so."""


class LearnerProgress(BaseModel):
    """What the learner is doing."""

    model_config = ConfigDict(frozen=True)

    step: int
    """The step in hand, or the next one while it waits; the first is 1."""
    phase: Phase
    done_tokens: int = 0
    all_tokens: int = 0
    """Of the phase. While rollouts are sampled an upper bound, which falls as answers end early."""
    left_s: float | None = Field(default=None, ge=0)
    """Estimated seconds until the whole step is done, as of ``at``; None: not known yet."""
    prompts: int = 0
    prompts_needed: int = 0
    """While it waits: the distinct prompts that it has, and needs."""
    at: datetime

    def sentence(self, now: datetime) -> str:
        """For a terminal or a page."""
        if self.phase == "waiting":
            return f"waits before step {self.step}"
        told = f"step {self.step}: {self.phase}, {self.done_tokens:,} of {self.all_tokens:,} tokens"
        silent_s = (now - self.at).total_seconds()
        if silent_s > OLD_S:
            return f"{told}; nothing new for {silent_s / 60:.0f} min"
        return told if self.left_s is None else f"{told}, about {max(1.0, self.left_s - silent_s):.0f} s left"

    def write(self, path: Path) -> None:
        """Into place at once, so that no reader sees half of it. Its folder is made where it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        incoming = path.with_suffix(".incoming")
        incoming.write_text(self.model_dump_json())
        incoming.rename(path)


def read_progress(path: Path) -> LearnerProgress | None:
    """What was told last; None when nothing was, or when it cannot be read."""
    try:
        return LearnerProgress.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


class StepTeller:
    """Told by a trainer what it does, and tells it on with an estimate of the time left."""

    def __init__(self, tell: Callable[[LearnerProgress], None], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock_s = tell, clock_s
        self._took_s: dict[Phase, float] = {}
        """Seconds of each phase, of this step or of the last."""
        self._step, self._phase, self._began_s, self._told_s = 0, PHASES[0], 0.0, 0.0
        self._done = self._all = 0

    def begin(self, step: int, phase: Phase, all_tokens: int) -> None:
        """A phase begins, and with it the last one ends."""
        now_s = self._clock_s()
        if self._step == step:
            self._took_s[self._phase] = now_s - self._began_s
        self._step, self._phase, self._began_s = step, phase, now_s
        self._done, self._all = 0, all_tokens
        self._pass_on(now_s)

    def done(self, tokens: int, all_tokens: int | None = None) -> None:
        """So many tokens of the phase are done; ``all_tokens`` when they have turned out to be more or fewer."""
        self._done, self._all = tokens, self._all if all_tokens is None else all_tokens
        if (now_s := self._clock_s()) - self._told_s >= EVERY_S:
            self._pass_on(now_s)

    def end(self) -> None:
        """The step is done."""
        self._took_s[self._phase] = self._clock_s() - self._began_s
        self._step = 0

    def left_s(self) -> float | None:
        """Seconds until the step is done, by this phase's own pace and by what the phases after it took last time; None: nobody knows yet."""
        spent_s, part = self._clock_s() - self._began_s, self._done / self._all if self._all else 0.0
        whole_s = spent_s / part if part > 0 else self._guess(self._phase)
        if whole_s is None:
            return None
        later = [self._guess(phase, whole_s) for phase in PHASES[PHASES.index(self._phase) + 1 :]]
        return max(0.0, whole_s - spent_s) + sum(one for one in later if one is not None)

    def _guess(self, phase: Phase, in_hand_s: float | None = None) -> float | None:
        """How long a phase takes in all: as last time; in a first step by what the phase in hand takes, or the rollouts took."""
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
    """For a trainer that nobody watches."""
