"""Forwards the progress of the current step to the log, to metrics, and to health, which so knows that the step advances."""

import time
from datetime import UTC, datetime

import structlog

from learner.runs.step_progress import PHASES, PROGRESS_FILE, LearnerProgress, Phase, read_progress
from streams.core.part_context import PartContext

log = structlog.get_logger()
TURN_S = 3600.0
"""A step on a CPU may take many minutes, and an engine may tell nothing meanwhile; a loop that has not moved for an hour hangs."""
LOG_EVERY_S = 30.0


class ProgressWatch:
    """Looks at the file that the process writes; writes it itself while the loop waits."""

    def __init__(self, context: PartContext, prompts_needed: int) -> None:
        self._context, self._prompts_needed = context, prompts_needed
        self._path = context.state / PROGRESS_FILE
        self._path.unlink(missing_ok=True)  # of an earlier run
        self._last: LearnerProgress | None = None
        self._logged_s = 0.0

    def waits(self, step: int, prompts: int, for_labels: bool = False) -> None:
        """The loop has too little to begin this step with."""
        told = LearnerProgress(
            step=step, phase="waiting", prompts=prompts, prompts_needed=self._prompts_needed, for_labels=for_labels, at=datetime.now(UTC)
        )
        if self._last is None or told != self._last.model_copy(update={"at": told.at}):
            told.write(self._path)
            self._tell(told)

    def look(self) -> None:
        """Called while a step is waited for."""
        if (told := read_progress(self._path)) is not None and told != self._last:
            self._context.health.heartbeat("learning", TURN_S)
            self._tell(told)

    def _tell(self, told: LearnerProgress) -> None:
        metrics = self._context.metrics
        for phase in ("waiting", *PHASES):
            metrics.set("tidemill_learner_phase", float(told.phase == phase), phase=phase)
        metrics.set("tidemill_learner_phase_tokens", told.done_tokens, what="done")
        metrics.set("tidemill_learner_phase_tokens", told.all_tokens, what="all")
        metrics.set("tidemill_learner_step_left_seconds", told.left_s or 0.0)
        new_phase: Phase | None = told.phase if self._last is None or self._last.phase != told.phase else None
        self._last = told
        if told.phase != "waiting" and (new_phase or time.monotonic() - self._logged_s >= LOG_EVERY_S):
            self._logged_s = time.monotonic()
            left_s = None if told.left_s is None else round(told.left_s)
            log.info("step_progress", step=told.step, phase=told.phase, done_tokens=told.done_tokens, all_tokens=told.all_tokens, left_s=left_s)
