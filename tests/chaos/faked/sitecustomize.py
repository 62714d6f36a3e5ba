"""Under libfaketime 0.9.10 ``time.sleep`` fails (its clock_nanosleep refuses absolute times), while waiting for an event does not."""

import threading
import time


def sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


time.sleep = sleep
