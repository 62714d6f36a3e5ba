"""Whoever computes in the background stands back with every thread, those that start later included."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, threading
from learner.runs.idle_priority import lower_priority
stopping = threading.Event()
early = threading.Thread(target=stopping.wait)
early.start()
lowered = lower_priority()
late = threading.Thread(target=stopping.wait)
late.start()
threads = [int(name) for name in os.listdir("/proc/self/task")]
print(json.dumps([lowered, [[os.sched_getscheduler(t), os.getpriority(os.PRIO_PROCESS, t)] for t in threads]]))
stopping.set()
"""


def test_every_thread_is_lowered_and_hands_it_on_to_those_it_starts() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    lowered, threads = json.loads(done.stdout)
    assert lowered >= 2
    assert len(threads) > lowered
    assert {tuple(one) for one in threads} == {(5, 19)}, "SCHED_IDLE is 5"
