"""Why threads that wait must sleep, and why the learner is in the idle class: products like those of an answer, beside products like those of a step.

Two processes of two threads each on the same cores, as actor and learner are. `python -m benchmarks.waiting_threads` takes about two minutes on two
cores; on a busy machine compare lines of one run only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from infra.local.core_plan import SLEEPING_THREADS
from learner.runs.idle_priority import lower_priority

LAYERS, PRODUCTS = 30, 8
AFTER_S = 4.0
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Way:
    """How the two processes share the cores."""

    name: str
    answers: dict[str, str]
    """Environment of the process that answers."""
    step: str | None = None
    """``plain`` or ``background``; None: nobody learns."""
    step_environment: dict[str, str] | None = None
    sessions: bool = False
    """Each process a session of its own, as parts were before."""


SPINNING: dict[str, str] = {}
ASLEEP_AT_ONCE = SLEEPING_THREADS | {"GOMP_SPINCOUNT": "0"}
WAYS = (
    Way("alone, threads spin", SPINNING),
    Way("alone, threads sleep at once", ASLEEP_AT_ONCE),
    Way("alone, as planned", dict(SLEEPING_THREADS)),
    Way("beside a step, threads spin, sessions of their own (before)", SPINNING, "plain", SPINNING, sessions=True),
    Way("beside a step in the background, threads spin", SPINNING, "background", SPINNING),
    Way("beside a step, as planned, but not in the background", dict(SLEEPING_THREADS), "plain", dict(SLEEPING_THREADS)),
    Way("beside a step in the background, as planned", dict(SLEEPING_THREADS), "background", dict(SLEEPING_THREADS)),
)


def main() -> None:
    """Measure every way, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=20, help="of one answer")
    parser.add_argument("--answers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--role", choices=("answers", "plain", "background"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.role:
        torch.set_num_threads(asked.threads)
        answer(asked.tokens, asked.answers) if asked.role == "answers" else train(asked.role == "background")
        return
    found = {}
    for way in WAYS:
        found[way.name] = seconds(way, asked)
        print(f"{way.name:<62} {found[way.name]}", flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1))


def seconds(way: Way, asked: argparse.Namespace) -> dict[str, float | str | None]:
    """Median and worst seconds of an answer; ``over`` how long when none was done by then."""
    sizes = [f"--tokens={asked.tokens}", f"--answers={asked.answers}", f"--threads={asked.threads}"]
    common = {**os.environ, "OMP_NUM_THREADS": str(asked.threads)}
    command = [sys.executable, "-m", "benchmarks.waiting_threads"]
    step = None
    if way.step is not None:
        step = subprocess.Popen([*command, "--role", way.step, *sizes], env=common | (way.step_environment or {}), stdout=subprocess.PIPE,
                                start_new_session=way.sessions)  # fmt: skip
        assert step.stdout is not None
        step.stdout.readline()  # it computes
        time.sleep(AFTER_S)
    try:
        answers = [*command, "--role", "answers", *sizes]
        done = subprocess.run(answers, env=common | way.answers, capture_output=True, check=True, timeout=PATIENCE_S, start_new_session=way.sessions)
        took = json.loads(done.stdout)
        return {"median_s": round(statistics.median(took), 2), "worst_s": round(max(took), 2)}
    except subprocess.TimeoutExpired:
        return {"median_s": None, "over": f"{PATIENCE_S:.0f} s for {asked.answers} answers"}
    finally:
        if step is not None:
            step.kill()
            step.wait()


@torch.inference_mode()
def answer(tokens: int, answers: int) -> None:
    """Many small products, each waited for by all threads: a token goes through every weight of a small base."""
    weights = [torch.randn(1536, 576, dtype=torch.bfloat16) for _ in range(LAYERS * PRODUCTS)]
    states_BH, took = torch.randn(2, 576, dtype=torch.bfloat16), []
    for _ in range(answers):
        start = time.perf_counter()
        for _ in range(tokens):
            for weight in weights:
                torch.nn.functional.linear(states_BH, weight).relu_()
        took.append(time.perf_counter() - start)
    print(json.dumps(took))


@torch.inference_mode()
def train(background: bool) -> None:
    """Large products, until it is ended."""
    if background:
        lower_priority()
    states_NH, weight = torch.randn(1024, 576, dtype=torch.bfloat16), torch.randn(576, 6144, dtype=torch.bfloat16)
    print("computes", flush=True)
    while True:
        (states_NH @ weight).relu_()


if __name__ == "__main__":
    main()
