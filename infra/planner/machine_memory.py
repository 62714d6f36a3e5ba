"""What memory a machine has free: its own, within the limit of a control group (containers), and that of its NVIDIA GPUs. Imports no torch."""

import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.machine.usable_cores import CGROUPS, OWN_CGROUPS

NVIDIA_SMI = "nvidia-smi"
QUERY_S = 20.0
DRIVER = Path("/dev/nvidiactl")


@dataclass(frozen=True)
class GpuMemory:
    """One GPU's memory in bytes."""

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class MachineMemory:
    """What is free now."""

    ram_bytes: int
    gpus: tuple[GpuMemory, ...] = ()
    has_driver: bool = False
    """NVIDIA's driver is there, though its tool may not be, as in some containers."""

    @property
    def has_gpu(self) -> bool:
        return bool(self.gpus) or self.has_driver


def machine_memory() -> MachineMemory:
    """Of this machine, now."""
    return MachineMemory(min(psutil.virtual_memory().available, control_group_room()), gpus(), DRIVER.exists())


def gpus(command: str = NVIDIA_SMI) -> tuple[GpuMemory, ...]:
    """The GPUs that NVIDIA's tool tells of; none where it is missing or fails."""
    if (found := shutil.which(command)) is None:
        return ()
    asked = [found, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=QUERY_S, check=True).stdout
        rows = [line.rsplit(",", 2) for line in told.splitlines() if line.strip()]
        return tuple(GpuMemory(name.strip(), int(total) << 20, int(free) << 20) for name, total, free in rows)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def control_group_room(cgroups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """Bytes that our control group (version 2) and its parents still allow; what only caches files counts as free. Very large without a limit."""
    room = math.inf
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return _count(room)
    path = next((line.split(":", 2)[2] for line in lines if line.startswith("0::")), None)
    if path is not None:
        folder = cgroups / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group == cgroups or cgroups in group.parents:
                room = min(room, _room_in(group))
    return _count(room)


def _count(room: float) -> int:
    return int(max(0.0, room)) if math.isfinite(room) else 1 << 62


def _room_in(group: Path) -> float:
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return math.inf
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(limit) - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    except (OSError, ValueError):
        return math.inf
