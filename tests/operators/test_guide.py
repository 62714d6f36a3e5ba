"""The operator's guide, truly run: every command of its shell blocks, in order, in one shell, against a ring with the tiny policy.

What differs from the page: ports are free ones, people talk for less long, the night comes every minute and its gates are wide, and the
cluster is one broker. Prometheus, started as the guide says, then sees the ring's own metrics: ours, vLLM's, Faust's and Ray's.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path

import pytest

from dashboards.grafana.grafana_panels import dashboards
from infra.local.embedded_broker import Broker, BrokerSettings, free_port
from tests.operators.prometheus import ask, numbers, until
from tests.unit.dashboards.test_dashboards import Grafana

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "operating.md").read_text()
ONE_MACHINE, CLUSTER = GUIDE.split("## 9. On a cluster")
TOML, SHELL = re.compile(r"```toml\n(.*?)```", re.S), re.compile(r"```sh\n(.*?)```", re.S)
SERVES = ("tidemill up", "tidemill console", "tidemill run", "tidemill status --watch", "prometheus ")
MAY_FIND_FAULT = ("tidemill doctor",)
"""Exits 1 on a machine with too little memory for the demo, or with the ring's own port in use."""
TINY = {
    "TIDEMILL_POLICY__BASE": "tiny", "TIDEMILL_ACTOR__CPU_THREADS": "1", "TIDEMILL_LEARNER__ENGINE": "transformers", "TIDEMILL_LEARNER__THREADS": "1",
    "TIDEMILL_LEARNER__MAX_OUTPUT_TOKENS": "16", "TIDEMILL_LEARNER__LEARNING_RATE": "0.01", "TIDEMILL_REWARD__MIN_LABELS": "12",
    "TIDEMILL_REWARD__MIN_EACH_VERDICT": "2", "TIDEMILL_PEOPLE__PREFERENCE": "says-e", "TIDEMILL_PEOPLE__ANSWER_TOKENS": "16",
    "TIDEMILL_PEOPLE__TEMPERATURE": "1.0", "TIDEMILL_PEOPLE__DELAY_S": "0.5", "TIDEMILL_LAKE__FLUSH_S": "2", "TIDEMILL_PROMOTION__CRON": "* * * * *",
    "TIDEMILL_PROMOTION__MIN_REWARD_LABELS": "1", "TIDEMILL_PROMOTION__MIN_AUC": "0", "TIDEMILL_PROMOTION__MAX_ECE": "1",
    "TIDEMILL_PROMOTION__MAX_KL_NATS": "100", "TIDEMILL_PROMOTION__PROMPTS": "8", "TIDEMILL_PROMOTION__MIN_WIN_RATE": "0",
    "TIDEMILL_PROMOTION__ANSWER_TOKENS": "16",
}  # fmt: skip
RARE = {
    "tidemill_publish_failures_total", "tidemill_dead_letters_total", "tidemill_reward_guard_ratio", "tidemill_reward_guard_tripped",
    "tidemill_capture_skipped_total", "tidemill_otlp_spans_total", "tidemill_adapters_refused_total", "tidemill_critic_verdicts_total",
    "tidemill_canary_difference", "tidemill_promotion_gates_total", "tidemill_promotions_total", "tidemill_redactions_total",
    "tidemill_outbox_dropped_total", "tidemill_learner_left_out_total", "tidemill_lake_compactions_total",
}  # fmt: skip
"""What a few good minutes may not bring about: faults, parts that are off, and what moves at night."""


class Terminal:
    """One bash, in a folder with the environment of this checkout; what it starts and leaves running ends with it."""

    def __init__(self, folder: Path, swaps: dict[str, str]) -> None:
        self.folder, self._swaps, self._count = folder, swaps, 0
        (folder / ".venv").symlink_to(ROOT / ".venv")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TIDEMILL_") or k == "TIDEMILL_CACHE"}
        self._bash = subprocess.Popen(["bash"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
                                      env=environment | TINY, start_new_session=True)  # fmt: skip
        self.ran: list[str] = []

    def swapped(self, text: str) -> str:
        """The text as it is here; in one pass, so that no port is taken for another."""
        return re.sub("|".join(map(re.escape, self._swaps)), lambda found: self._swaps[found[0]], text)

    def run(self, line: str) -> str:
        """One command of the guide; what it said. One that serves stays in the background, and says nothing here."""
        self._count += 1
        self.ran.append(line)
        said, ended, pid = (self.folder / f"{self._count}.{kind}" for kind in ("said", "ended", "pid"))
        command = self.swapped(line)
        assert self._bash.stdin is not None
        if line.startswith(SERVES):
            self._bash.stdin.write(f"{command} > {said} 2>&1 & echo $! > {pid}; echo 0 > {ended}\n")
        else:
            self._bash.stdin.write(f"{command} > {said} 2>&1; echo $? > {ended}\n")
        self._bash.stdin.flush()
        until(lambda: ended.exists() and ended.read_text().strip() != "", 900, line)
        told = said.read_text() if said.exists() else ""
        allowed = {"0", "1"} if line.startswith(MAY_FIND_FAULT) else {"0"}
        assert ended.read_text().strip() in allowed, f"{line}\n{told[-4000:]}"
        return told

    def await_shown(self) -> None:
        """Until what serves since the last command shows something; then Ctrl-C, so that it takes no time from the rest."""
        said, pid = (self.folder / f"{self._count}.{kind}" for kind in ("said", "pid"))
        until(lambda: said.exists() and said.read_text() != "", 90, f"{self.ran[-1]} to show something")
        os.kill(int(pid.read_text()), signal.SIGTERM)
        pid.unlink()

    def logs(self) -> str:
        """The ends of all logs, for a failed wait."""
        found = [*self.folder.glob("*.said"), *self.folder.glob("runs/mine/logs/*.log")]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(found))

    def stop(self) -> None:
        """SIGTERM to what serves, newest first, as an operator would."""
        for path in sorted(self.folder.glob("*.pid"), key=lambda path: -int(path.stem)):
            subprocess.run(["bash", "-c", f"kill {path.read_text()}"], check=False, capture_output=True)
        assert self._bash.stdin is not None
        self._bash.stdin.write("wait\n")
        self._bash.stdin.close()
        try:
            self._bash.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(self._bash.pid, 9)
            self._bash.wait(10)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def swaps() -> Iterator[dict[str, str]]:
    """What is written on the page, and what stands for it here."""
    kind = type("OneGrafana", (Grafana,), {"folders": [], "sources": [], "boards": {}, "changes": 0})
    grafana = HTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=grafana.serve_forever, daemon=True).start()
    first = next(port for port in iter(lambda: random.randrange(20_000, 30_000), 0) if all(is_free(port + n) for n in range(7)))
    yield {
        "9100": str(first), "9090": str(free_port()), "8090": str(free_port()), "port = 8000": f"port = {(actor := free_port())}",
        "127.0.0.1:8000": f"127.0.0.1:{actor}", "localhost:3000": f"127.0.0.1:{grafana.server_port}", "GRAFANA_TOKEN=...": "GRAFANA_TOKEN=good-token",
        "--minutes 2": "--minutes 0.4", "make .venv": f"make -C {ROOT} .venv",
    }  # fmt: skip
    grafana.shutdown()
    grafana.server_close()


def commands(text: str) -> list[str]:
    return [line for block in SHELL.findall(text) for line in block.splitlines() if line.strip()]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def served_by(actor: str) -> str:
    """Who answers for the policy now."""
    body = json.dumps({"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).encode()
    asked = urllib.request.Request(f"http://{actor}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return str(answer.headers["x-tidemill-adapter"])


def test_on_one_machine(swaps: dict[str, str], tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, swaps)
    actor, console, prometheus = (swaps[name] if name != "8000" else swaps["127.0.0.1:8000"] for name in ("8000", "8090", "9090"))
    (ring,) = TOML.findall(ONE_MACHINE)
    (tmp_path / "tidemill.toml").write_text(terminal.swapped(ring) + f"\n[console]\nport = {console}\n")
    try:
        for line in commands(ONE_MACHINE):
            if line.startswith("tidemill promote"):
                until(lambda: _published(terminal), 400, f"an adapter\n{terminal.logs()}")
            told = terminal.run(line)
            if line.startswith("tidemill status --watch"):
                terminal.await_shown()
            elif line.startswith("tidemill up"):
                until(lambda: answers(f"http://{actor}/readyz"), 400, f"the actor\n{terminal.logs()}")
            elif line.startswith("tidemill console"):
                until(lambda: answers(f"http://127.0.0.1:{console}/readyz"), 90, f"the console\n{terminal.logs()}")
            elif line.startswith("prometheus"):
                until(lambda: answers(f"http://127.0.0.1:{prometheus}/-/ready"), 60, f"Prometheus\n{terminal.logs()}")
            elif line.startswith("tidemill promote "):
                until(lambda: served_by(actor) == "default@1", 120, f"default@1 to be served: {told}")
            elif line.startswith("tidemill rollback"):
                until(lambda: served_by(actor) == "base", 60, f"the base to be served: {told}")
        _people_talk(terminal)  # while Prometheus looks on: rates need two looks; and the night comes
        until(lambda: "candidate" in _moves(terminal), 150, f"a night\n{terminal.logs()}")
        _sees_everything(f"http://127.0.0.1:{prometheus}", terminal)
    finally:
        terminal.stop()
    assert terminal.ran == commands(ONE_MACHINE) + terminal.ran[len(commands(ONE_MACHINE)) :]


def _published(terminal: Terminal) -> bool:
    """An adapter is on the log; where there is none, people talk on."""
    status = subprocess.run(["bash", "-c", terminal.swapped(".venv/bin/tidemill status --json")], cwd=terminal.folder, text=True,
                            capture_output=True, env=os.environ | TINY, check=True)  # fmt: skip
    if json.loads(status.stdout)["adapters_published"]:
        return True
    _people_talk(terminal)
    return False


def _people_talk(terminal: Terminal) -> None:
    (simulate,) = [line for line in commands(ONE_MACHINE) if line.startswith("tidemill simulate")]
    subprocess.run(
        ["bash", "-c", f".venv/bin/{terminal.swapped(simulate)}"], cwd=terminal.folder, env=os.environ | TINY, check=False, capture_output=True
    )


def _moves(terminal: Terminal) -> str:
    done = subprocess.run(["bash", "-c", ".venv/bin/tidemill promotions --json"], cwd=terminal.folder, text=True,
                          capture_output=True, env=os.environ | TINY, check=True)  # fmt: skip
    return done.stdout


def _sees_everything(prometheus: str, terminal: Terminal) -> None:
    """Every target is up, libraries' own metrics are there, and every expression of every dashboard has an answer."""
    (job,) = {"ray"} & {target["labels"]["job"] for target in ask(prometheus, "targets")["activeTargets"]}
    down = [target["scrapeUrl"] for target in ask(prometheus, "targets")["activeTargets"] if target["health"] != "up"]
    assert (job, down) == ("ray", []), terminal.logs()
    for library in ("vllm:", "faust_", "ray_"):
        assert numbers(ask(prometheus, "query", query=f'count({{__name__=~"{library}.*"}})'))[0] > 3, library
    until(lambda: _unanswered(prometheus) <= RARE, 90, f"panels to show something: {sorted(_unanswered(prometheus) - RARE)}")


def _unanswered(prometheus: str) -> set[str]:
    """Metrics of the expressions that have no numbers yet."""
    empty: set[str] = set()
    for model in dashboards().values():
        for expression in (target["expr"] for panel in model["panels"] for target in panel["targets"]):
            if not numbers(
                ask(prometheus, "query", query=expression.replace("$__rate_interval", "10m").replace("$replica", ".*").replace("$policy", ".*"))
            ):
                empty |= set(re.findall(r"tidemill_\w+?(?=_bucket|\b)", expression))
    return empty


def test_on_a_cluster(swaps: dict[str, str], tmp_path: Path) -> None:
    with Broker(BrokerSettings(), tmp_path / "broker") as broker:
        here = {"/var/lib/tidemill": str(tmp_path / "state"), "s3://tidemill": str(tmp_path / "store"), "replication = 3": "replication = 1",
                "kafka-1:9092,kafka-2:9092,kafka-3:9092": broker.bootstrap_servers}  # fmt: skip
        (tmp_path / "checkout").mkdir()
        terminal = Terminal(tmp_path / "checkout", swaps | here)
        (cluster,) = TOML.findall(CLUSTER)
        (terminal.folder / "cluster.toml").write_text(terminal.swapped(cluster))
        try:
            terminal.run("source .venv/bin/activate")
            for line in commands(CLUSTER):
                if line.startswith("tidemill simulate"):
                    until(lambda: answers(f"http://{swaps['127.0.0.1:8000']}/readyz"), 400, f"the actor\n{terminal.logs()}")
                told = terminal.run(line)
                if line.startswith("tidemill ledger"):
                    assert "episodes" in told
            assert int(re.search(r"labels +(\d+)", terminal.run("tidemill status --config cluster.toml"))[1]) > 0  # type: ignore[index]
        finally:
            terminal.stop()
