"""A part of the ring that runs on a thread of the test, and waiting until something is true."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from streams.core.part_context import PartContext


@contextmanager
def running(work: Callable[[PartContext], None], context: PartContext) -> Iterator[None]:
    """Stopped in good order at the end."""
    thread = threading.Thread(target=work, args=(context,))
    thread.start()
    try:
        yield
    finally:
        context.stopping.set()
        thread.join(60)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], within_s: float = 240) -> None:
    """Fails when it does not come true."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)
