"""Runs in parallel what must be ready before the parts start: Kafka, the base, the measurement of the machine."""

import threading
import time
from collections.abc import Callable, Set

POLL_S = 0.1
BREAK_OFF_S = 5.0
"""Longest wait for cancelled jobs. What is left asks a Kafka that does not answer, and ends with the process."""


class Preparations:
    """Jobs, each in its own thread, and steps that follow when jobs are done. The first failure cancels the others."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self.broken_off = threading.Event()
        """Set on cancellation. Long jobs must check it."""
        self.took_s: dict[str, float] = {}
        """Duration of each finished job, in seconds."""
        self._threads: list[threading.Thread] = []
        self._steps: list[tuple[frozenset[str], Callable[[], None]]] = []
        self._failures: list[BaseException] = []

    def begin(self, name: str, work: Callable[[], None]) -> None:
        """Start a job in a thread."""
        began_s = self._clock_s()

        def run() -> None:
            try:
                work()
                self.took_s[name] = self._clock_s() - began_s
            except BaseException as error:  # noqa: BLE001 - the main thread raises it
                self._failures.append(error)

        self._threads.append(threading.Thread(target=run, name=name, daemon=True))
        self._threads[-1].start()

    def then(self, names: Set[str], step: Callable[[], None]) -> None:
        """When all jobs in ``names`` are done, call ``step`` in the thread that calls ``finish``. A step may begin more jobs."""
        self._steps.append((frozenset(names), step))

    def finish(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until everything is done. Raises the first failure, or what ``meanwhile`` or a step raises, after all jobs have ended."""
        try:
            while self._steps or any(thread.is_alive() for thread in self._threads):
                meanwhile()
                self._raise_failure()
                for due in [one for one in self._steps if one[0] <= self.took_s.keys()]:
                    self._steps.remove(due)
                    due[1]()
                self.broken_off.wait(POLL_S)
            self._raise_failure()
        except BaseException:
            self.break_off()
            raise

    def break_off(self) -> None:
        """Cancel all jobs, and wait for at most ``BREAK_OFF_S`` until they have ended."""
        self.broken_off.set()
        until_s = time.monotonic() + BREAK_OFF_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]
