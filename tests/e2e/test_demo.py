"""The main job on real parts, with the tiny policy: asserted on events and numbers, never on log text."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet
import pytest

from infra.simulated_people.simulated_questions import HELD_OUT
from streams.core.topics import ADAPTERS, ATTESTATIONS, EPISODES, FEEDBACK, LABELS, REWARD_MODELS, Topic
from tests.support.collector import Collector

DEMO = [sys.executable, "-P", "-m", "infra.cli", "demo", "--policy", "tiny"]
STAGES = [("capture", "tidemill-actor"), ("join", "tidemill-streams"), ("refit", "tidemill-reward"), ("step", "tidemill-learner"),
          ("load", "tidemill-actor")]  # fmt: skip


def in_lake(run: Path, topic: Topic) -> list:  # type: ignore[type-arg]
    """Every event of a topic that the lake of this run holds."""
    files = sorted((run / "lake" / topic.short_name).rglob("*.parquet"))
    return [topic.decode(value) for file in files for value in pyarrow.parquet.read_table(file).column("value").to_pylist()]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as listening:
        yield listening


@pytest.fixture(scope="module")
def run(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo") / "run"
    # Over as soon as the rise is shown, and after two minutes at the soonest: how long that takes is the machine's affair.
    words = [*DEMO, "--minutes", "2", "--at-most", "20", "--seed", "0", "--keep", str(folder)]
    done = subprocess.run(words, env=os.environ | {"TIDEMILL_TRACES__URL": collector.url}, capture_output=True, text=True, timeout=1500, check=False)
    return folder, done


def test_the_loop_closes_and_the_rise_is_shown_by_pairs(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = run
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "report.json").read_text())
    assert (report["verdict"], report["broken"]) == ("closed", [])
    pairs = report["pairs"]
    assert 0 < pairs["shown_with"] <= pairs["better"] + pairs["same"] + pairs["worse"]
    assert pairs["better"] > pairs["worse"]
    assert report["simulated_people"]["requests_failed"] == 0
    assert report["simulated_people"]["thumbs_lost"] == 0
    assert len(report["held_out"]) == 48
    assert report["machine"]["step_s"]
    assert set(report["machine"]["cpu_s"]) >= {"actor", "learner", "reward", "streams", "Kafka"}
    assert report["peak_memory_mib"] > 500


def test_every_arrow_of_the_ring_left_its_events_in_the_lake(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = run
    report = json.loads((folder / "report.json").read_text())
    episodes = {episode.episode_id: episode for episode in in_lake(folder, EPISODES)}
    feedback, labels = in_lake(folder, FEEDBACK), {label.episode_id: label for label in in_lake(folder, LABELS)}
    models, adapters = in_lake(folder, REWARD_MODELS), in_lake(folder, ADAPTERS)
    attestations = in_lake(folder, ATTESTATIONS)

    assert len({f.feedback_id for f in feedback}) == report["simulated_people"]["thumbs"]  # one that was sent again is on the log twice
    assert {f.episode_id for f in feedback} == set(labels) <= set(episodes)
    up = {f.episode_id: f.thumb == "up" for f in feedback}
    assert {episode_id: label.verdict for episode_id, label in labels.items()} == {e: float(v) for e, v in up.items()}
    assert all(len(e.output_ids) == len(e.output_logprobs) > 0 for e in episodes.values())
    assert [m.version for m in models] == list(range(1, len(models) + 1))
    assert [a.version for a in adapters] == list(range(1, len(adapters) + 1))
    assert {a.reward_model_version for a in adapters} <= {m.version for m in models}
    assert {a.adapter for a in attestations if a.passed} >= set(report["served_after"])
    held_out = {question.text for question in HELD_OUT}
    assert not held_out & {e.messages[-1].text for e in episodes.values()}, "a held-out question became an episode, which the learner reads"
    served = {e.adapter for e in episodes.values() if e.adapter}
    assert served <= {a.adapter for a in attestations if a.passed}, "an adapter answered before it was attested"
    assert len(served) >= 2


def test_one_trace_leads_from_an_answer_through_join_refit_and_step_to_the_adapter_that_was_loaded(
    run: tuple[Path, subprocess.CompletedProcess[str]], collector: Collector
) -> None:
    lines = [collector.line(stage) for stage in collector.stages if stage.name == "load"]
    whole = [line for line in lines if [(stage.name, stage.part) for stage in line] == STAGES]
    assert whole, lines  # a part that died and was started again may have taken spans with it
    assert all(len({stage.trace for stage in line}) == 1 for line in whole)


def test_what_parts_log_of_a_version_and_of_an_adapter_names_its_trace(
    run: tuple[Path, subprocess.CompletedProcess[str]], collector: Collector
) -> None:
    said = [(line["event"], line.get("trace")) for part in ("reward", "learner", "actor") for line in logged(run[0], part)]
    for event, stage in (("reward_model_published", "refit"), ("adapter_published", "step"), ("adapter attested", "load")):
        named = {trace for each, trace in said if each == event}
        assert named & {span.trace for span in collector.stages if span.name == stage}, (event, named)


def logged(run: Path, part: str) -> list[dict[str, object]]:
    """What a part says of itself, a JSON object a line; what libraries write beside it is left out."""
    found = []
    for line in (run / "logs" / f"{part}.log").read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict) and "event" in line]


def test_the_report_is_one_self_contained_page(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    page = (run[0] / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "simulated" in page
    assert 'src="' not in page
    assert "<link" not in page


def test_ctrl_c_leaves_no_process_behind_and_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    demo = subprocess.Popen([*DEMO, "--keep", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder / "logs" / "learner.log").exists():
        time.sleep(0.2)
    second = subprocess.run(
        [*DEMO[:-2], "--config", "tiny", "--set", f"run_folder={folder}", "--keep", str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert second.returncode == 1
    assert str(folder) in second.stderr
    time.sleep(3)
    children = psutil.Process(demo.pid).children(recursive=True)
    assert len(children) >= 4
    os.kill(demo.pid, signal.SIGINT)
    demo.wait(timeout=90)
    assert demo.returncode == 130
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
