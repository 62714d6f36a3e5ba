"""How the parts share the cores of one machine: answers come first, learning uses what is left.

Two effects would otherwise slow answers down. OpenMP threads spin while they wait: when two processes have more threads than there are cores,
each wastes the time that the other needs (an answer took 17 times as long beside a busy process). And Linux groups processes by session
(autogroup): niceness counts only within a session. So waiting threads sleep, all parts stay in the ring's session, and each part has a
niceness. The learner's processes lower their priority further (``learner.background``).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from infra.settings.config import Settings

NICENESS = {"actor": 0, "otlp": 0, "streams": 0, "promoter": 5, "reward": 5, "critic": 10, "learner": 10}
"""0 for parts that answer people or store what they said; higher for parts that score and learn. On a busy core, niceness 5 gets a third of the time
of niceness 0, and 10 a tenth. The learner has 0 when ``learner.background`` is off."""
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "10000"}
"""For every OpenMP runtime (GNU, LLVM, Intel): a waiting thread releases its core. GNU's spins for some microseconds first: that costs little, and
an answer is a third faster than with threads that sleep between any two products."""


@dataclass(frozen=True)
class CoreShare:
    """One part's share."""

    niceness: int
    threads: int
    """Threads for its matrix products; 1 for a part that computes none."""
    environment: Mapping[str, str] = field(default_factory=dict)


def core_plan(cores: int, settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[str, CoreShare]:
    """The share of each part. Cores are not reserved: actor and learner may each use all of them, by priority.

    ``environment``: variables that the operator has set, such as ``OMP_WAIT_POLICY``, are kept.
    """
    threads_of = {
        "actor": settings.actor.cpu_threads or cores,
        "learner": settings.learner.threads or max(1, cores // settings.learner.workers),
        "reward": settings.reward.threads,
        "promoter": settings.reward.threads,
    }
    shares = {}
    for part, niceness in NICENESS.items():
        threads = threads_of.get(part, 1)
        wanted = SLEEPING_THREADS | {"OMP_NUM_THREADS": str(threads)}
        if part == "learner" and not settings.learner.background:
            niceness = 0
        shares[part] = CoreShare(niceness, threads, {name: value for name, value in wanted.items() if name not in environment})
    return shares
