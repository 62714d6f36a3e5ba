"""A process that has shared work among threads must not be forked for an engine; a fresh one may."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("before", "safe"), [("", "True"), ("torch.ones(4_000_000).add_(1)", "False")], ids=["fresh", "has worked"])
def test_whether_a_fork_can_work_is_found_by_trying(before: str, safe: str) -> None:
    script = f"import torch; torch.set_num_threads(2); {before}\nfrom actor.forking import fork_is_safe\nprint(fork_is_safe(timeout_s=1.0))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()[-1] == safe
