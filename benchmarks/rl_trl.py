"""The peer: TRL's GRPOTrainer with PEFT on the same task. Run by benchmarks/rl.py in a process of its own."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.rl_task import Curve, Task, prompt, true_reward
from infra.simulated_people.simulated_questions import SimulatedQuestion
from learner.models.lora_settings import AUTO
from reward.families.model_family import ATTENTION, FUSED


def main(task: Task, base: Path, out: Path) -> None:
    """Train, and write the curve."""
    torch.set_num_threads(1)
    curve = Curve("trl")

    def reward(completions: list[Any], subject: list[str], text: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        said = [completion[0]["content"] for completion in completions]
        found = [true_reward(SimulatedQuestion(s, t), answer) for s, t, answer in zip(subject, text, said, strict=True)]
        curve.rewards.append(sum(found) / len(found))
        curve.tokens.append(sum(len(ids) for ids in completion_ids))
        return found

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            curve.clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            curve.stepped(out)

    rows = [
        {"prompt": [m.model_dump(include={"role", "content"}) for m in prompt(q)], "subject": q.subject, "text": q.text}
        for step in task.questions()
        for q in step
    ]
    settings = task.learner()
    asked = ((settings.attention_targets, ATTENTION), (settings.expert_targets, FUSED))
    attention, experts = (own if names == AUTO else names for names, own in asked)
    config = GRPOConfig(
        output_dir=str(out.parent / "trl"), seed=task.seed, use_cpu=True, bf16=True, gradient_checkpointing=False, max_steps=task.steps,
        per_device_train_batch_size=task.prompts * task.samples, num_generations=task.samples, max_completion_length=task.tokens,
        temperature=task.temperature, learning_rate=task.learning_rate, lr_scheduler_type="constant", weight_decay=0.0, shuffle_dataset=False,
        save_strategy="no", logging_strategy="no", model_init_kwargs={"dtype": "bfloat16"}, dataloader_num_workers=0,
    )  # fmt: skip
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=task.rank, lora_alpha=task.alpha, lora_dropout=0.0,
        target_modules=list(attention), target_parameters=[f"mlp.experts.{name}" for name in experts],
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=str(base),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(str(base), local_files_only=True),
        peft_config=lora,
        callbacks=[Clock()],
    )
    generate = trainer._generate

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = generate(*args, **kwargs)
        curve.rollout_s += time.perf_counter() - start
        return result

    trainer._generate = timed
    trainer.train()


if __name__ == "__main__":
    main(Task(**json.loads(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))
