"""Two steps of learning by 1, 2 and 4 processes over gloo, for tests/slow/test_parallel_learning.py: `python parallel_steps.py BASE OUT`.

One process imports and samples; the others are its forks, so that the whole takes seconds. The rollouts are given: what is compared is learning.
"""

import json
import multiprocessing
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from learner.distributed.process_mesh import ALONE, Mesh, join
from learner.models.lora_policy import Policy
from learner.rollouts.rollout_engines import Rollout, TransformersEngine
from learner.runs.trainer import Prompt, Trainer
from learner.settings import LearnerSettings
from streams.core.events import Message

SETTINGS = LearnerSettings(dtype="float32", max_output_tokens=8, samples_per_prompt=3, learning_rate=1e-3, kl_groups_ratio=0.5, microbatch_tokens=64,
                           updates_per_step=2, kl_coefficient=0.1)  # fmt: skip
QUESTIONS = ("What is tea?", "Say a word.", "Why?", "Tell me of whales.", "Go on.")
ASKED: list[Prompt] = [(Message(role="user", content=question),) for question in QUESTIONS]
LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2), (1, 4))
"""Rows of the mesh, and processes in a row."""


class Told:
    """An engine that answers with rollouts it was given."""

    name = "told"

    def __init__(self, rollouts: list[Rollout]) -> None:
        self._by_prompt: dict[tuple[int, ...], list[Rollout]] = {}
        for rollout in rollouts:
            self._by_prompt.setdefault(rollout.prompt_ids, []).append(rollout)

    def adopt(self, policy: Policy, version: int) -> None:
        """Whatever the policy: the rollouts stay."""

    def sample(self, prompts: list[tuple[int, ...]], *_: object) -> list[Rollout]:
        return [rollout for prompt in prompts for rollout in self._by_prompt[prompt]]

    def rest(self) -> None:
        """Holds nothing."""

    def close(self) -> None:
        """Holds nothing."""


def policy(base: Path, mesh: Mesh = ALONE) -> Policy:
    """With an adapter that is not zero."""
    made, chance = Policy(base, SETTINGS, mesh=mesh), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters.values():
            weight.copy_(torch.randn(weight.shape, generator=chance) * 0.1)
    return made


def sampled(one: Policy) -> list[Rollout]:
    engine = TransformersEngine(one)
    return engine.sample([one.prompt_ids(prompt) for prompt in ASKED], SETTINGS.samples_per_prompt, SETTINGS.max_output_tokens, 1.0, seed=5)


def learn(base: Path, out: Path, rollouts: list[Rollout], rank: int, rows: int, columns: int) -> None:
    """One process's two steps, and what it has then."""
    torch.set_num_threads(1)
    mesh = join(out / f"meeting-{rows}x{columns}", rank, rows * columns, columns, torch.device("cpu"), timeout_s=120)
    one = policy(base, mesh)
    again = sampled(one) if (rows, columns) == (1, 2) else rollouts
    trainer = Trainer(one, Told(rollouts), SETTINGS)
    metrics = [trainer.step(ASKED, lambda pairs: [answer.count("e") / 10 for _, answer in pairs]).metrics for _ in range(2)]
    tensors = {f"adapter/{name}": weight.detach() for name, weight in one.parameters.items()}
    tensors |= {f"gradient/{name}": weight.grad for name, weight in one.parameters.items() if weight.grad is not None}
    name = f"{rows}x{columns}-{rank}"
    save_file(tensors, out / f"{name}.safetensors")
    base_weights = sum(p.numel() for p in one.causal_lm.parameters() if not p.requires_grad)
    told = {"metrics": metrics, "base_weights": base_weights, "sampled": [r.output_ids for r in again]}
    (out / f"{name}.json").write_text(json.dumps(told))


def main(base: Path, out: Path) -> None:
    torch.set_num_threads(1)
    rollouts = sampled(policy(base))
    forked = multiprocessing.get_context("fork")
    for rows, columns in LAYOUTS:
        processes = [forked.Process(target=learn, args=(base, out, rollouts, rank, rows, columns)) for rank in range(rows * columns)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit(f"{rows} x {columns}: exit codes {[process.exitcode for process in processes]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
