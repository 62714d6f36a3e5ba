"""Six ways to learn the same thing, side by side: GRPO, GSPO, CISPO and PPO from rewards, KTO from thumbs, distillation from corrections.

``make bench-rl-algorithms`` trains the tiny random base from the same fresh adapter on the same questions, and draws their curves in one plot. The
task: most words should have an e. Rewards see how many do; a thumb sees whether at least six in ten do; a correction is a sentence that a
simulated person wrote. KTO and distillation learn from the answers of the step before, as they would from live ones. A run that
was cut off has written the ways that it was through with, and the next one goes on after them.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot

from infra.local.part_process import base_folder
from infra.settings.config import load
from infra.simulated_people.preferences import PREFERENCES
from infra.simulated_people.simulated_questions import SimulatedQuestion, training_question
from learner.models.lora_policy import Policy
from learner.ring.labelled_answers import LabelledAnswer
from learner.rollouts.rollout_engines import TransformersEngine
from learner.runs.trainer import Prompt, Trainer
from learner.settings import LearnerSettings
from streams.core.events import Message

SENTENCES = (
    "These bees never sleep here.",
    "Seven green trees were there.",
    "We rest between the deep sea trees.",
    "When people sleep, the sea never rests.",
)
LIKED = PREFERENCES["says-e"]
REWARDED: dict[str, Any] = {"updates_per_step": 2}
SAVED: dict[str, Any] = {"rollout_weight": 0.0, "updates_per_step": 2}
WAYS: dict[str, dict[str, Any]] = {
    "GRPO": {**REWARDED},
    "GSPO": {**REWARDED, "surrogate": "gspo", "clip_low": 0.05, "clip_high": 0.05},
    "CISPO": {**REWARDED, "surrogate": "cispo"},
    "PPO": {**REWARDED, "advantage": "gae"},
    "KTO": {**SAVED, "thumb_weight": 1.0},
    "distillation": {**SAVED, "hindsight_weight": 1.0},
}
TASK: dict[str, Any] = {"prompts_per_step": 4, "samples_per_prompt": 8, "max_output_tokens": 10, "learning_rate": 0.005, "kl_coefficient": 0.0,
                        "engine": "transformers"}  # fmt: skip


def main() -> None:
    """Learn in each way for each seed, and write curves and plot after every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rl_algorithms.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/results/rl_algorithms.svg"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = base_folder(load(None, ("policy.base=tiny",)).policy)
    about = {"base": "tiny", "task": TASK, "ways": WAYS, "steps": options.steps, "seeds": options.seeds, "cores": os.cpu_count()}
    told = begun(options.out, about)
    curves: dict[str, list[list[float]]] = told["true_reward"]
    seconds: dict[str, float] = told["processor_s_a_step"]
    for way in [way for way in WAYS if way not in curves]:
        began = time.process_time()
        curves[way] = [learn(base, LearnerSettings(**TASK, **WAYS[way], seed=seed), options.steps) for seed in range(options.seeds)]
        seconds[way] = (time.process_time() - began) / (options.steps * options.seeds)
        mean = [sum(of) / len(of) for of in zip(*curves[way], strict=True)]
        print(f"{way:<14} {mean[0]:.2f} → {sum(mean[-3:]) / 3:.2f}   {seconds[way]:.2f} processor seconds a step", flush=True)
        told["about"] = about | {"at": datetime.now(UTC).isoformat()}
        options.out.write_text(json.dumps(told, indent=1) + "\n")
        draw(curves, options.plot)


def begun(out: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run of the same task that was cut off, to go on with; none after one that ended, or of another task."""
    found = json.loads(out.read_text()) if out.exists() else {}
    same = {name: value for name, value in found.get("about", {}).items() if name != "at"} == json.loads(json.dumps(about))
    cut_off = same and set(found["true_reward"]) < set(WAYS)
    return found if cut_off else {"about": about, "processor_s_a_step": {}, "true_reward": {}}


def learn(base: Path, settings: LearnerSettings, steps: int) -> list[float]:
    """The mean true reward of each step's rollouts."""
    policy = Policy(base, settings)
    trainer = Trainer(policy, TransformersEngine(policy), settings)
    source = random.Random(settings.seed)
    found: list[float] = []
    live: list[LabelledAnswer] = []
    for step in range(steps):
        asked = [training_question(source) for _ in range(settings.prompts_per_step)]
        prompts: list[Prompt] = [(Message(role="user", content=question.text),) for question in asked]
        result = trainer.step(prompts, reward, live)
        found.append(result.metrics["reward_mean"])
        pairs = [(n, asked[n // settings.samples_per_prompt], answer) for n, answer in enumerate(result.answers)]
        live = [labelled(f"{step}-{n}", question, answer, source) for n, question, answer in pairs if answer.strip()][::2]  # half of the people say
    return found


def reward(pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
    """The part of the words that have an e."""
    return [sum("e" in word for word in answer.lower().split()) / max(1, len(answer.split())) for _, answer in pairs]


def labelled(episode_id: str, question: SimulatedQuestion, answer: str, source: random.Random) -> LabelledAnswer:
    """A thumb, and where it points down the answer as the person would have liked it."""
    good = LIKED.approves(question, answer)
    return LabelledAnswer(
        episode_id=episode_id,
        prompt=(Message(role="user", content=question.text),),
        answer=answer,
        verdict=float(good),
        correction=None if good else source.choice(SENTENCES),
    )


def draw(curves: dict[str, list[list[float]]], path: Path) -> None:
    """One line for each way, the mean over seeds."""
    matplotlib.rcParams["svg.hashsalt"] = "tidemill"
    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    for way, of_seeds in curves.items():
        axes.plot(
            range(1, len(of_seeds[0]) + 1),
            [sum(of) / len(of) for of in zip(*of_seeds, strict=True)],
            label=way,
            ls="-" if way in list(WAYS)[:4] else "--",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("true reward of the rollouts")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncol=2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
