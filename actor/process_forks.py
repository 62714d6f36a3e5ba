"""Processes that end with their parent, and whether this one may be forked."""

import ctypes
import os
import signal
import sys
import time

EXPERT_LAYOUT = "TIDEMILL_EXPERT_LAYOUT"
"""The variable that carries ``actor.expert_layout`` to vLLM's processes."""
PARENT = "TIDEMILL_ENGINE_PARENT"
"""Environment variable: process id of the actor. An engine that was spawned, not forked, finds it in ``register``."""
PR_SET_PDEATHSIG = 1
ELEMENTS = 4_000_000
"""Enough that torch shares the work among threads."""


def die_with_parent() -> None:
    """Have the kernel end this process when the one that made it is gone, however it went: no engine is left holding memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def forks_die_with_parent() -> None:
    """From now on, every process forked from this one ends when its parent ends, even if the parent ended before the kernel was asked to watch it."""
    parent = 0

    def remember() -> None:
        nonlocal parent
        parent = os.getpid()

    def in_child() -> None:
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)

    os.register_at_fork(before=remember, after_in_child=in_child)


def fork_is_safe(timeout_s: float = 3.0) -> bool:
    """True when a fork of this process can share work among threads.

    Once a process has done so itself (GNU OpenMP), a fork of it waits for ever for threads that were not copied. Whether that
    has happened cannot be asked, only tried: on a child, for some milliseconds.
    """
    import torch

    child = os.fork()
    if child == 0:
        torch.ones(ELEMENTS).add_(1)
        os._exit(0)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0] == child:
            return True
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False
