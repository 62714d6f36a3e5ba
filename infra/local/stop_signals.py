"""Stop signals: SIGTERM and SIGINT."""

import signal
import threading
from types import FrameType


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping
