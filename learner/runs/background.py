"""Lowers the priority of a process, so that it computes only when no other process needs the cores."""

import contextlib
import os
import sys
from pathlib import Path

LOWEST_NICENESS = 19


def stand_back() -> int:
    """Give every thread of this process the lowest priority, and so every thread that one of them starts later. Returns how many were lowered.

    In Linux's idle class a thread is interrupted at once when any other wants its core, where niceness alone lets it finish its slice: a server's
    threads sleep and wake hundreds of times an answer. Each thread has a class of its own, hence one by one. There is no way back without rights.
    """
    lowered = 0
    for thread in [int(entry.name) for entry in Path("/proc/self/task").iterdir()] if Path("/proc/self/task").exists() else [0]:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended meanwhile; a sandbox forbids it
            os.setpriority(os.PRIO_PROCESS, thread, LOWEST_NICENESS)
            if sys.platform == "linux":
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
            lowered += 1
    return lowered
