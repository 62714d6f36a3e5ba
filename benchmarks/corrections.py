"""Correct it today: thirty corrections given once, in words; does the next adapter know them when asked in other words?

``make bench-corrections`` asks the base thirty questions, gives each answer a thumb down, with or without a word of what is true, lets the learner
take its steps, and asks the rephrasings that nobody had asked. The people are simulated. Arms: ``thumbs`` alone; ``comments`` (a thumb and the fact
as a comment, which the policy that was told it teaches the one that was not, on answers it gives once told); ``corrections`` (a thumb and the
whole answer as it should have been). No reward model is in it: what is measured is what the words bring beside the thumb. The base is the dense
model that the mixture is made from, which answers the same and learns in a third of the time; the adapter is on attention alone.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.corrections_facts import FACTS, Fact
from infra.config import load
from infra.roles import base_folder
from infra.statistics import share
from learner.judged import JudgedAnswer
from learner.policy import Policy
from learner.rollouts import TransformersEngine
from learner.settings import LearnerSettings
from learner.trainer import Prompt, Trainer
from streams.events import Message

SYSTEM = "You are the desk of a guest house. Answer in one short sentence."
ARMS: dict[str, dict[str, Any]] = {
    "thumbs": {"thumb_weight": 0.2},
    "comments": {"thumb_weight": 0.2, "hindsight_weight": 1.0, "hindsight_samples": 2},
    "corrections": {"thumb_weight": 0.2, "hindsight_weight": 1.0},
}


def main() -> None:
    """Take each arm from the same fresh adapter, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--rounds", type=int, default=8, help="how often every correction is learned from before the adapter goes out")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--facts", type=int, default=len(FACTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/corrections.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = base_folder(load(None, (f"policy.base={options.base}",)).policy) / "dense"
    told = json.loads(options.out.read_text())["arms"] if options.out.exists() else {}
    for arm in options.arms:
        told[arm] = measure(arm, base, options.rounds, options.learning_rate, FACTS[: options.facts])
        print(f"{arm:<12} knew {told[arm]['before']['estimate']:.0%} before, {told[arm]['after']['estimate']:.0%} after; {told[arm]['steps']} steps, "
              f"{told[arm]['learning_s']:.0f} s")  # fmt: skip
        about = {"people": "simulated", "facts": options.facts, "base": options.base, "cores": os.cpu_count(), "at": datetime.now(UTC).isoformat()}
        options.out.write_text(json.dumps({"about": about, "arms": told}, indent=1) + "\n")


def measure(arm: str, base: Path, rounds: int, learning_rate: float, facts: tuple[Fact, ...]) -> dict[str, Any]:
    """Before and after on the rephrasings, and what the answers were."""
    settings = LearnerSettings(**ARMS[arm], rollout_weight=0.0, kl_coefficient=0.1, kl_groups_ratio=1.0, learning_rate=learning_rate,
                               samples_per_prompt=2, max_output_tokens=16, temperature=0.7, engine="transformers",
                               expert_targets=())  # fmt: skip
    policy = Policy(base, settings)
    trainer = Trainer(policy, TransformersEngine(policy), settings)
    live = [judged(arm, fact, answer) for fact, answer in zip(facts, answers(policy, [fact.question for fact in facts]), strict=True)]
    before = answers(policy, [fact.rephrased for fact in facts])
    began, steps, batch = time.perf_counter(), 0, settings.judged_per_step
    for _ in range(rounds):
        for start in range(0, len(live), batch):
            some = live[start : start + batch]
            metrics = trainer.step([one.prompt for one in some[:4]], lambda pairs: [0.0] * len(pairs), some).metrics
            steps += 1
            print(
                f"{arm} step {steps}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k.startswith(("thumb_", "hindsight_"))), flush=True
            )
    learning_s = time.perf_counter() - began
    after = answers(policy, [fact.rephrased for fact in facts])
    return {
        "before": asdict(share([knows(fact, said) for fact, said in zip(facts, before, strict=True)])),
        "after": asdict(share([knows(fact, said) for fact, said in zip(facts, after, strict=True)])),
        "steps": steps,
        "learning_s": round(learning_s, 1),
        "settings": {"rounds": rounds, "learning_rate": learning_rate, **ARMS[arm]},
        "answers": [[fact.rephrased, b, a] for fact, b, a in zip(facts, before, after, strict=True)],
    }


def prompt(question: str) -> Prompt:
    """As the guests' application sends it."""
    return (Message(role="system", content=SYSTEM), Message(role="user", content=question))


def judged(arm: str, fact: Fact, answer: str) -> JudgedAnswer:
    """The live answer with what the person gave."""
    return JudgedAnswer(
        episode_id=fact.key,
        prompt=prompt(fact.question),
        answer=answer or "I do not know.",
        verdict=0.0,
        comments=(fact.words,) if arm == "comments" else (),
        correction=fact.words if arm == "corrections" else None,
    )


def answers(policy: Policy, questions: list[str]) -> list[str]:
    """The likeliest answers, near enough: sampled at a low temperature, all at once."""
    ids = [policy.prompt_ids(prompt(question)) for question in questions]
    found = TransformersEngine(policy).sample(ids, samples=1, max_output_tokens=16, temperature=0.05, seed=0)
    return list(policy.tokenizer.batch_decode([rollout.output_ids for rollout in found], skip_special_tokens=True))


def knows(fact: Fact, answer: str) -> bool:
    """Whether the answer says what was corrected, and nothing of what others corrected: babble of all that was heard is no knowledge."""
    return {other.key for other in FACTS if other.key in answer.lower()} == {fact.key}


if __name__ == "__main__":
    main()
