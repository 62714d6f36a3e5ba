"""A process that has shared work among threads must not be forked for an engine; a fresh one may."""

import subprocess
import sys

import psutil
import pytest


@pytest.mark.parametrize(("before", "safe"), [("", "True"), ("torch.ones(4_000_000).add_(1)", "False")], ids=["fresh", "has worked"])
def test_whether_a_fork_can_work_is_found_by_trying(before: str, safe: str) -> None:
    script = f"import torch; torch.set_num_threads(2); {before}\nfrom actor.process_forks import fork_is_safe\nprint(fork_is_safe(timeout_s=1.0))"
    assert subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True).stdout.split()[-1] == safe


def test_a_forked_child_does_not_outlive_a_parent_that_is_killed() -> None:
    script = (
        "import os, time\nfrom actor.process_forks import forks_die_with_parent\nforks_die_with_parent()\n"
        "child = os.fork()\nif child == 0: time.sleep(60)\nprint(child, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-P", "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert psutil.wait_procs([child], timeout=30)[1] == []
