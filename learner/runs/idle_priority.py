"""Lowers the priority of a process, so that it computes only when no other process needs the cores."""

import contextlib
import os
import sys
from pathlib import Path

LOWEST_NICENESS = 19


def lower_priority() -> int:
    """Give every thread of this process, and every thread that they start later, the lowest priority. Returns how many were lowered.

    In Linux's idle class a thread yields its core at once to any other thread. With niceness alone it finishes its time slice, and a server's threads
    sleep and wake hundreds of times per answer. The class is set per thread. Raising the priority again needs privileges.
    """
    lowered = 0
    for thread in [int(entry.name) for entry in Path("/proc/self/task").iterdir()] if Path("/proc/self/task").exists() else [0]:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended meanwhile; a sandbox forbids it
            os.setpriority(os.PRIO_PROCESS, thread, LOWEST_NICENESS)
            if sys.platform == "linux":
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
            lowered += 1
    return lowered
