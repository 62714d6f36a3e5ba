"""Who may use the cores of one machine: people who wait for an answer come first, and whoever learns takes what is left.

Two things starved people before there was a plan. OpenMP threads that wait for each other spin: while two processes have more threads than there
are cores, each burns the time that the other needs (an answer took 17 times as long beside a busy process). And a part that is a session of its
own is a scheduling group of its own (Linux autogroup), to which its niceness means nothing outside of it. So threads sleep while they
wait, parts stay in the ring's own session, and each part has a niceness. The learner's processes lower themselves further
(``learner.background``).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from infra.settings.config import Settings

NICENESS = {"actor": 0, "otlp": 0, "streams": 0, "promoter": 5, "reward": 5, "critic": 10, "learner": 10}
"""0 for what people wait for, or what keeps what they said; more for what thinks about it. 5 is a third of the time of 0 on a busy core, 10 a
tenth. The learner's is 0 where it is not to work in the background."""
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "10000"}
"""For every OpenMP (GNU's, LLVM's and Intel's): who waits for another thread gives its core away. GNU's tries for some microseconds first, which
costs nobody much, and makes an answer a third faster than falling asleep between any two products."""


@dataclass(frozen=True)
class CoreShare:
    """What one part gets."""

    niceness: int
    threads: int
    """For its matrix products; a part that makes none has one."""
    environment: Mapping[str, str] = field(default_factory=dict)


def core_plan(cores: int, settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[str, CoreShare]:
    """A share for each part. The cores are not dealt out: actor and learner may each use all of them, in the order of priority.

    ``environment``: what the operator has set already, such as ``OMP_WAIT_POLICY``, stays.
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
