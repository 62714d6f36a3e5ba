"""Tidemill's learner on the task: its policy, trainer and engine as they run in production, without Kafka and Ray around them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.rl_task import Curve, Task, prompt, true_reward
from learner.models.lora_policy import Policy
from learner.rollouts.engine_choice import make_engine
from learner.runs.trainer import Prompt, Trainer


def main(task: Task, base: Path, out: Path) -> None:
    """Train, and write the curve."""
    torch.set_num_threads(1)
    curve, settings = Curve("tidemill"), task.learner()
    policy = Policy(base, settings)
    trainer = Trainer(policy, make_engine(policy, settings), settings)
    steps = task.questions()
    asked = {question.text: question for step in steps for question in step}

    def reward(pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        return [true_reward(asked[messages[-1].text], answer) for messages, answer in pairs]

    curve.clock()
    for step in steps:
        metrics = trainer.step([prompt(question) for question in step], reward).metrics
        curve.rewards.append(metrics["reward_mean"])
        curve.tokens.append(int(metrics["output_tokens"]))
        curve.rollout_s += metrics["rollout_s"]
        curve.stepped(out)


if __name__ == "__main__":
    main(Task(**json.loads(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))
