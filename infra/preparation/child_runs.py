"""Work in a child process, which can be cancelled at any moment; a thread cannot."""

import ctypes
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streams.core.errors import Unavailable

POLL_S = 0.1


@dataclass(frozen=True)
class ChildRun:
    """The result of a child process."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """Last line of standard error: the reason of a failure."""
        return self.err.strip().rpartition("\n")[2]


def die_with_parent() -> None:
    """Call in a child before exec: the kernel sends it SIGTERM when its parent dies (Linux, prctl PR_SET_PDEATHSIG).

    "Parent" is the thread that started the child: start it from a thread that lives as long as the child should.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def run_child(command: Sequence[str], environment: Mapping[str, str], broken_off: threading.Event, timeout_s: float = float("inf")) -> ChildRun:
    """Run a command to its end. Raises Unavailable after ``timeout_s``, or soon after ``broken_off`` is set; the child has then ended."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(command, env=dict(environment), stdout=out, stderr=err, stdin=subprocess.DEVNULL, process_group=0,
                                 preexec_fn=die_with_parent)  # fmt: skip
        waited_s = 0.0
        while child.poll() is None:
            if broken_off.wait(POLL_S) or (waited_s := waited_s + POLL_S) > timeout_s:
                child.kill()
                child.wait()
                why = "was stopped" if broken_off.is_set() else f"took longer than {timeout_s:.0f} s"
                raise Unavailable(f"{' '.join(command[1:4])} {why}")
        out.seek(0)
        err.seek(0)
        return ChildRun(child.returncode, out.read().decode(errors="replace"), err.read().decode(errors="replace"))
