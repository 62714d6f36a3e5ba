"""How fast RL learns beside TRL's GRPOTrainer: the same base, LoRA (attention and experts), questions, reward and seed, on this machine, in turn.

``make bench-rl`` installs TRL from ``infra/build/locks/bench.txt`` and runs this. Absolute figures are of the machine; the ratios are what counts.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.rl_task import Task
from infra.local.part_process import base_folder
from infra.settings.config import load

GOAL = 1 / 3
"""Of TRL's wall time to the same true reward."""
WINDOW = 3


def main() -> None:
    """Measure both sides in turn, print the table and write JSON; exits 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sides", nargs="*", default=["tidemill", "trl"], help="those to measure now; a curve that lies in --curves is not measured again"
    )
    parser.add_argument("--curves", type=Path, default=Path("runs/bench-rl"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rl.json"))
    options = vars(parser.parse_args())
    out: Path = options.pop("out")
    sides, folder = options.pop("sides"), options.pop("curves")
    task = Task(**options)
    base = base_folder(load(None, (f"policy.base={task.base}",)).policy)
    folder.mkdir(parents=True, exist_ok=True)
    for side in sides:
        _measure(side, task, base, folder / f"{side}.json")
    if missing := [side for side in ("tidemill", "trl") if not (folder / f"{side}.json").exists()]:
        sys.exit(f"measured {', '.join(sides)}; to compare, measure {', '.join(missing)} too")
    curves = [json.loads((folder / f"{side}.json").read_text()) for side in ("tidemill", "trl")]
    told = compare(*curves)
    for row in table(*curves, told):
        print(row)
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine(), "at": datetime.now(UTC).isoformat()}
    out.write_text(json.dumps({"machine": machine, "task": asdict(task), "ratios": told, "goal": GOAL, "curves": curves}, indent=1) + "\n")
    print(f"written to {out}")
    ratio = told["wall_time_to_reward"]
    sys.exit(0 if ratio is not None and ratio <= GOAL else 1)


def compare(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float | None]:
    """Ours over the peer's. The reward both must reach is the lower of their best smoothed ones; before it no time is told."""
    target = min(max(smoothed(ours["rewards"])), max(smoothed(peer["rewards"])))
    reached = [time_to(side, target) for side in (ours, peer)]
    return {
        "target_reward": target,
        "wall_time_to_reward": reached[0] / reached[1],
        "processor_time_a_step": _a_step(ours, "processor_s") / _a_step(peer, "processor_s"),
        "wall_time_a_step": _a_step(ours, "seconds") / _a_step(peer, "seconds"),
        "rollout_tokens_per_s": (sum(ours["tokens"]) / ours["rollout_s"]) / (sum(peer["tokens"]) / peer["rollout_s"]),
        "training_seconds_a_step": (_a_step(ours, "seconds") - ours["rollout_s"] / len(ours["seconds"]))
        / (_a_step(peer, "seconds") - peer["rollout_s"] / len(peer["seconds"])),
        "peak_memory": ours["peak_memory_mib"] / peer["peak_memory_mib"],
    }


def _a_step(curve: dict[str, Any], clock: str) -> float:
    return float(curve[clock][-1]) / len(curve[clock])


def smoothed(rewards: list[float]) -> list[float]:
    """Means over the last ``WINDOW`` steps, as soon as there are so many."""
    return [sum(rewards[n - WINDOW : n]) / WINDOW for n in range(WINDOW, len(rewards) + 1)]


def time_to(curve: dict[str, Any], target: float) -> float:
    """Seconds until the smoothed reward first reaches the target, which it does."""
    first = next(n for n, reward in enumerate(smoothed(curve["rewards"])) if reward >= target - 1e-9)
    return float(curve["seconds"][first + WINDOW - 1])


def table(ours: dict[str, Any], peer: dict[str, Any], told: dict[str, float | None]) -> list[str]:
    """For the terminal."""
    rows = [f"{'':<28}{'Tidemill':>12}{'TRL':>12}"]
    for name, of in (
        ("seconds a step", lambda c: c["total_s"] / len(c["seconds"])),
        ("  of which rollouts", lambda c: c["rollout_s"] / len(c["seconds"])),
        ("processor seconds a step", lambda c: _a_step(c, "processor_s")),
        ("rollout tokens/s", lambda c: sum(c["tokens"]) / c["rollout_s"]),
        ("first true reward", lambda c: smoothed(c["rewards"])[0]),
        ("last true reward", lambda c: smoothed(c["rewards"])[-1]),
        (f"seconds to {told['target_reward']:.2f}", lambda c: time_to(c, told["target_reward"] or 0.0)),
        ("peak memory, GiB", lambda c: c["peak_memory_mib"] / 1024),
    ):
        rows.append(f"{name:<28}{of(ours):>12.2f}{of(peer):>12.2f}")
    return [*rows, "", *(f"ratio: {name} {value:.2f}" for name, value in told.items() if name != "target_reward" and value is not None)]


def _measure(side: str, task: Task, base: Path, out: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, "-m", f"benchmarks.rl_{side}", json.dumps(asdict(task)), str(base), str(out)], check=True, env=environment)


if __name__ == "__main__":
    main()
