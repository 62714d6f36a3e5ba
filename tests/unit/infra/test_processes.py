"""Parts are started again when they die, and nothing is left behind."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.local import processes
from infra.local.processes import RESTARTS, PartProcess, Processes
from streams.core.errors import Unavailable


class Scripts(Processes):
    """Parts that run a line of Python in place of a tidemill role."""

    def start_script(self, name: str, script: str) -> None:
        part = PartProcess(name, [sys.executable, "-c", script], {}, self._logs / f"{name}.log")
        self._parts[name] = part
        processes._launch(part)


def test_a_part_that_keeps_dying_is_given_up_with_the_end_of_its_log(tmp_path: Path) -> None:
    parts = Scripts(tmp_path)
    parts.start_script("flaky", "print('out of cheese'); raise SystemExit(3)")

    def until_given_up() -> None:
        while True:
            parts.check()
            assert parts.restarts.get("flaky", 0) <= RESTARTS
            time.sleep(0.02)

    with pytest.raises(Unavailable, match=f"flaky died {RESTARTS + 1} times(.|\n)*out of cheese"):
        until_given_up()


def test_stopping_a_part_ends_its_children_too(tmp_path: Path) -> None:
    parts = Scripts(tmp_path)
    sleeper = "import time; time.sleep(60)"
    child = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', '{sleeper}']).pid, flush=True); {sleeper}"
    parts.start_script("parent", child)
    log, deadline = tmp_path / "parent.log", time.monotonic() + 10
    while not log.read_text().endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.02)
    grandchild = int(log.read_text())
    assert psutil.pid_exists(grandchild)
    parts.stop_all(timeout_s=5)
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE


def test_a_log_on_a_full_disk_ends_nobody(tmp_path: Path) -> None:
    written = "import resource, structlog\nfrom infra.local.part_logs import log_json\nlog_json('streams')\nstructlog.get_logger().info('before')\n"
    written += "resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))\n"
    written += "for _ in range(100):\n    structlog.get_logger().warning('x' * 100)\nprint('alive')\n"
    with (tmp_path / "log").open("wb") as log:
        root = Path(__file__).parents[3]
        done = subprocess.run([sys.executable, "-c", written], stderr=log, stdout=subprocess.PIPE, text=True, check=False, cwd=root)
    assert "before" in (tmp_path / "log").read_text()
    assert "alive" in done.stdout
