"""How many cores this process may use: by its affinity (``taskset``, cpusets) and by the quota of its control group (containers)."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class UsableCores:
    """What there is to compute on."""

    count: int
    """Cores that threads can run on at once."""
    quota: float
    """Cores' worth of time that a second gives; less than ``count`` where a control group limits it."""

    @property
    def threads(self) -> int:
        """The largest number of threads that make sense: more than the quota only wait together for the next period."""
        return max(1, min(self.count, math.floor(self.quota + 1e-9)))


def usable_cores(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> UsableCores:
    """What this process may use now."""
    count = len(os.sched_getaffinity(0))
    return UsableCores(count, min(float(count), cpu_quota(cgroups, own)))


def cpu_quota(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float:
    """Cores' worth of time that the control groups allow, the least of ours and of all above it; infinite where there is no limit."""
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
