"""Waits until every part has reported an erasure, and says meanwhile who has and what the others are doing."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from infra.operate.erasure_certificate import Certificate
from learner.runs.step_progress import OLD_S, LearnerProgress

PATIENCE_S = 60.0
"""How long to wait where ``--wait`` is not given; a learner in the middle of a step is waited for as long as it goes on."""
POLL_S, TELL_AGAIN_S = 0.5, 15.0
LEARNER = "learner ("
"""The beginning of the place of which the certificate says that it has not reported, while a learner is in the middle of a step."""


class ErasureWait:
    """One wait. ``certificate`` reads the log again; ``progress`` is that of the learner on this machine, or None."""

    def __init__(self, certificate: Callable[[], Certificate], progress: Callable[[], LearnerProgress | None], say: Callable[[str], None],
                 clock_s: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep,
                 now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:  # fmt: skip
        self._certificate, self._progress, self._say = certificate, progress, say
        self._clock_s, self._pause, self._now = clock_s, pause, now
        self._reported: set[str] = set()
        self._told_s = -TELL_AGAIN_S

    def until_complete(self, wait_s: float | None) -> Certificate:
        """The certificate, as soon as it is complete or at the end of the wait. ``wait_s`` None: ``PATIENCE_S`` from the last sign of progress."""
        until_s = self._clock_s() + (PATIENCE_S if wait_s is None else wait_s)
        while True:
            found = self._certificate()
            if found.complete:
                return found
            progress = self._tell(found) or self.step(found) is not None
            if wait_s is None and progress:
                until_s = self._clock_s() + PATIENCE_S
            if self._clock_s() >= until_s:
                return found
            self._pause(POLL_S)

    def step(self, found: Certificate) -> LearnerProgress | None:
        """The step in the middle of which the learner is, where the certificate waits for it: it reads erasures between two steps."""
        told = self._progress() if any(each.startswith(LEARNER) for each in found.waiting) else None
        if told is None or told.phase == "waiting" or (self._now() - told.at).total_seconds() > OLD_S:
            return None
        return told

    def _tell(self, found: Certificate) -> bool:
        """Say what is new. True when a place has reported since the last look."""
        new = sorted(found.removed.keys() - self._reported)
        self._reported |= set(new)
        for place in new:
            self._say(f"reported: {place}")
        if new or self._clock_s() - self._told_s >= TELL_AGAIN_S:
            self._told_s = self._clock_s()
            step = self.step(found)
            for each in found.waiting:
                busy = step is not None and each.startswith(LEARNER)
                self._say(f"the learner answers at the end of {step.sentence(self._now())}" if busy and step else f"not yet: {each}")
        return bool(new)
