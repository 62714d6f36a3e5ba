"""Stop signals: SIGTERM and SIGINT."""

import signal
import threading
from types import FrameType

from streams.core.errors import TidemillError


class StopRequested(TidemillError):
    """Somebody asked to stop before it was done: stop cleanly."""


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping
