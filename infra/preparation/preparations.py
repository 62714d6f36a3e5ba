"""What a ring needs before its parts can start is made ready side by side: Kafka, the base, what the machine is good at."""

import threading
import time
from collections.abc import Callable, Set

POLL_S = 0.1


class Preparations:
    """Pieces of work, each in a thread of its own, and steps that follow on them. The first that fails breaks off the others."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self.broken_off = threading.Event()
        """Set when the rest is in vain: work that takes long must look at it."""
        self.took_s: dict[str, float] = {}
        """Seconds that each piece took, once it is done."""
        self._threads: list[threading.Thread] = []
        self._steps: list[tuple[frozenset[str], Callable[[], None]]] = []
        self._failures: list[BaseException] = []

    def begin(self, name: str, work: Callable[[], None]) -> None:
        """Start ``work`` in a thread."""
        began_s = self._clock_s()

        def run() -> None:
            try:
                work()
                self.took_s[name] = self._clock_s() - began_s
            except BaseException as error:  # noqa: BLE001 - carried over to the main thread, which raises it
                self._failures.append(error)

        self._threads.append(threading.Thread(target=run, name=name, daemon=True))
        self._threads[-1].start()

    def then(self, names: Set[str], step: Callable[[], None]) -> None:
        """Once all of ``names`` are done, take this step in the thread that calls ``finish``; it may begin more."""
        self._steps.append((frozenset(names), step))

    def finish(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Until all is done. Raises the first failure, or what ``meanwhile`` or a step raises; nothing is at work any more then."""
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
        """End all that is at work, and wait until it has ended."""
        self.broken_off.set()
        for thread in self._threads:
            thread.join()

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]
