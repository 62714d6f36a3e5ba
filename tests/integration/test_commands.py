"""The operator's commands beside a ring that runs: what the README tells a newcomer to type, typed."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest

TIDEMILL = [sys.executable, "-P", "-m", "infra.cli"]


@dataclass
class Up:
    """A ring started by ``tidemill up``."""

    process: subprocess.Popen[str]
    folder: Path
    said: list[str]

    @property
    def base_url(self) -> str:
        """What it tells people to give to their client."""
        found = re.search(r'base_url="([^"]+)"', "".join(self.said))
        assert found, "".join(self.said)
        return found.group(1)

    def tell(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same run."""
        return subprocess.run([*TIDEMILL, *command, "--set", f"run_folder={self.folder}"], capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up") / "run"
    process = subprocess.Popen(
        [*TIDEMILL, "up", "--config", "tiny", "--set", f"run_folder={folder}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    ring = Up(process, folder, [])
    threading.Thread(target=lambda: ring.said.extend(iter(process.stdout.readline, "")), daemon=True).start()  # type: ignore[union-attr]
    deadline = time.monotonic() + 400
    while "Ctrl-C stops everything" not in "".join(ring.said):
        assert process.poll() is None, "".join(ring.said)
        assert time.monotonic() < deadline, "".join(ring.said)
        time.sleep(0.5)
    yield ring
    if process.poll() is None:
        process.kill()
        process.wait()


def test_the_client_and_the_thumb_of_the_readme_become_a_label(up: Up) -> None:
    client = openai.OpenAI(base_url=up.base_url, api_key="none", timeout=120)
    answer = client.chat.completions.with_raw_response.create(
        model="default", messages=[{"role": "user", "content": "Tell me about tea."}], max_tokens=8
    )
    assert answer.parse().choices[0].message.content is not None
    episode = answer.headers["x-tidemill-episode"]
    thumb = {"episode_id": episode, "user_id": "u-7", "kind": "thumb", "thumb": "up"}
    assert httpx.post(f"{up.base_url}/feedback", json=thumb, timeout=30).status_code in (200, 201, 202)
    seven = httpx.post(f"{up.base_url}/feedback", json={**thumb, "thumb": 7}, timeout=30)
    assert seven.status_code in (400, 422)
    assert "thumb" in seven.text
    deadline = time.monotonic() + 60
    while (told := json.loads(up.tell("status", "--json").stdout))["labels"] < 1:
        assert time.monotonic() < deadline, told
    assert told["votes"] == 1
    assert told["serving"] == "base"
    assert "serving         base" in up.tell("status").stdout


def test_simulated_people_talk_to_it_and_the_books_balance(up: Up) -> None:
    done = up.tell("simulate", "--base-url", up.base_url, "--minutes", "0.2", "--config", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"got (\d+) answers \(0 requests failed\) and gave (\d+) thumbs", done.stdout)
    assert found, done.stdout
    answers, thumbs = map(int, found.groups())
    assert answers >= thumbs >= 1
    deadline = time.monotonic() + 60
    while (books := up.tell("ledger")).returncode:
        assert time.monotonic() < deadline, books.stdout
    assert f"feedback {thumbs + 1} published = {thumbs + 1} joined" in " ".join(books.stdout.split())


def test_the_doctor_finds_the_ring_well_and_names_a_port_that_is_taken(up: Up) -> None:
    servers = re.search(r"Kafka +(\S+:\d+)", "".join(up.said))
    assert servers
    well = up.tell("doctor", "--set", f"kafka.bootstrap_servers={servers.group(1)}", "--set", "actor.port=0")
    assert f"{servers.group(1)} answers, topics are correct" in well.stdout
    port = up.base_url.split(":")[-1].removesuffix("/v1")
    own = up.tell("doctor", "--set", f"actor.port={port}")
    assert re.search(rf"ok +actor +127.0.0.1:{port} answers, and is ready", own.stdout)
    assert re.search(r"ok +ring +serves \S+; all published records are accounted for", own.stdout)
    with socket.create_server(("127.0.0.1", 0)) as held:
        taken = up.tell("doctor", "--set", f"actor.port={held.getsockname()[1]}")
    assert taken.returncode == 1
    assert re.search(r"FIX +actor's port +127.0.0.1:\d+: Address already in use", taken.stdout)


def test_topics_are_as_the_table_has_them_and_a_second_ring_on_the_folder_is_refused(up: Up) -> None:
    servers = re.search(r"Kafka +(\S+:\d+)", "".join(up.said))
    assert servers
    topics = up.tell("topics", "--set", f"kafka.bootstrap_servers={servers.group(1)}")
    assert topics.returncode == 0, topics.stdout
    assert topics.stdout.count("as it should be") == len(topics.stdout.splitlines())
    second = up.tell("up", "--config", "tiny")
    assert second.returncode == 1
    assert "in use by another run" in second.stderr
    assert "Traceback" not in second.stderr


def test_ctrl_c_stops_everything(up: Up) -> None:
    children = psutil.Process(up.process.pid).children(recursive=True)
    assert len(children) >= 4
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=90) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["status"], "there is no run in runs: start one with `tidemill up`"),
        (["simulate", "--base-url", "http://127.0.0.1:9/v1", "--minutes", "0.02"], "nobody got an answer from http://127.0.0.1:9/v1"),
        (["config", "--set", "learner.lerning_rate=1"], "lerning_rate"),
        (["up", "--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_what_the_operator_can_mend_is_one_line_and_exit_status_1(command: list[str], reason: str, tmp_path: Path) -> None:
    done = subprocess.run([*TIDEMILL, *command], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
