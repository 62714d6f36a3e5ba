"""A Ray that does not come up leaves nothing behind, and what ran before stays."""

import subprocess
import sys
from typing import Any

import psutil
import pytest

from learner.distributed import ray_cluster
from learner.settings import LearnerSettings
from streams.core.errors import Unavailable

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_a_start_that_fails_half_way_leaves_no_process_and_ends_none_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    own = subprocess.Popen(SLEEPS)
    tries: list[subprocess.Popen[bytes]] = []

    def half_way(**given: Any) -> None:
        tries.append(subprocess.Popen(SLEEPS))
        raise Exception("the node took too long")

    monkeypatch.setattr(ray_cluster.ray, "init", half_way)
    try:
        with pytest.raises(Unavailable, match="in 4 tries"):
            ray_cluster._init(LearnerSettings())
        assert len(tries) == ray_cluster.RAY_STARTS
        assert not [one for one in tries if psutil.pid_exists(one.pid) and psutil.Process(one.pid).status() != psutil.STATUS_ZOMBIE]
        assert own.poll() is None
    finally:
        own.kill()
        own.wait()
        for one in tries:
            one.wait()
