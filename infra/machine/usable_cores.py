"""How many cores this process may use: its affinity (``taskset``, cpusets) and the CPU quota of its control group (containers)."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class UsableCores:
    """The cores that this process may use."""

    count: int
    """Number of cores that threads can run on."""
    quota: float
    """Processor seconds per second; less than ``count`` when a control group limits it."""

    @property
    def threads(self) -> int:
        """Largest useful number of threads: beyond the quota, threads only wait for its next period."""
        return max(1, min(self.count, math.floor(self.quota + 1e-9)))


def usable_cores(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> UsableCores:
    """The cores that this process may use now."""
    count = len(os.sched_getaffinity(0))
    return UsableCores(count, min(float(count), cpu_quota(cgroups, own)))


def cpu_quota(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float:
    """Processor seconds per second that our control group and all its parents allow; infinite without a limit."""
    limits = [math.inf]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            roots, read = (cgroups, cgroups / "unified"), _limit_v2
        elif "cpu" in controllers.split(","):
            roots, read = (cgroups / "cpu", cgroups / controllers), _limit_v1
        else:
            continue
        for root in roots:
            folder = root / path.lstrip("/")
            limits += [read(above) for above in (folder, *folder.parents) if above == root or root in above.parents]
            limits.append(read(root))
    return min(limits)


def _limit_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _limit_v1(folder: Path) -> float:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
