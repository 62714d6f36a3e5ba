"""Correct it today: thirty corrections given once, in words; does the next adapter know them when asked in other words?

``make bench-corrections`` asks the base thirty questions, gives each answer a thumb down, with or without a word of what is true, lets the learner
take its steps, and asks the rephrasings that nobody had asked. The people are simulated. Arms: ``thumbs`` alone; ``comments`` (a thumb and the fact
as a comment, which the base that was told it teaches the policy that was not, on answers given once told); ``corrections`` (a thumb and the
whole answer as it should have been). No reward model is in it: what is measured is what the words bring beside the thumb.

What keeps an arm within six minutes of two slow cores: the base is the dense model that the mixture is made from, which answers the same and
learns in a third of the time (the adapter is on its attention and its MLP, as the mixture's is on attention and experts); answers of a dozen tokens;
and in each step only a few everyday questions, on whose rollouts the KL to the base is paid. What is measured is written after every step.
Settings are chosen with ``--tune``, which asks another rephrasing than the one that is held out.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.corrections_facts import FACTS, Fact
from infra.demo.intervals import paired_difference, share
from infra.demo.skills_kept import TEXTS
from infra.local.part_process import base_folder
from infra.settings.config import load
from infra.simulated_people.simulated_questions import training_question
from learner.models.lora_policy import Policy
from learner.models.sequence_packing import Branches, pack
from learner.ring.labelled_answers import LabelledAnswer
from learner.rollouts.rollout_engines import TransformersEngine
from learner.runs.trainer import Prompt, Trainer
from learner.settings import LearnerSettings
from streams.core.events import Message

SYSTEM = "You are the desk of a guest house. Answer in one short sentence."
ARMS: dict[str, dict[str, Any]] = {
    "thumbs": {},
    "comments": {"hindsight_weight": 1.0},
    "corrections": {"hindsight_weight": 1.0},
}
LEARNER: dict[str, Any] = {
    "thumb_weight": 0.2, "hindsight_teacher": "base", "hindsight_samples": 2, "rollout_weight": 0.0, "kl_coefficient": 0.1, "kl_groups_ratio": 1.0,
    "learning_rate": 1e-3, "prompts_per_step": 2, "samples_per_prompt": 2, "max_output_tokens": 12, "temperature": 0.7, "engine": "transformers",
    "attention_targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), "expert_targets": (),
}  # fmt: skip
LOOK_EVERY_ROUNDS = 3
ANSWER_TOKENS = 16


def main() -> None:
    """Take each arm from the same fresh adapter, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--rounds", type=int, default=6, help="how often every correction is learned from before the adapter goes out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--facts", type=int, default=len(FACTS))
    parser.add_argument("--tune", type=json.loads, help="try other settings of the learner, as JSON, on the rephrasings that are not held out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/corrections.json"))
    options = parser.parse_args()
    tunes = options.tune is not None
    if tunes and options.out == parser.get_default("out"):
        sys.exit("--tune is no result: give it an --out of its own")
    torch.set_num_threads(1)  # two beside another busy process come to a crawl
    base = base_folder(load(None, (f"policy.base={options.base}",)).policy) / "dense"
    arms: dict[str, Any] = json.loads(options.out.read_text())["arms"] if options.out.exists() else {}
    about = {"people": "simulated", "facts": options.facts, "base": options.base, "seed": options.seed, "cores": os.cpu_count()}

    def write(arm: str, figures: dict[str, Any]) -> None:
        arms[arm] = figures
        told = {"about": about | {"at": datetime.now(UTC).isoformat()}, "words_less_thumbs": lead(arms), "arms": arms}
        options.out.write_text(json.dumps(told, indent=1) + "\n")

    for arm in options.arms:
        settings = LearnerSettings(**{**LEARNER, **ARMS[arm], "seed": options.seed, **(options.tune or {})})
        figures = measure(arm, base, settings, options.rounds, FACTS[: options.facts], tunes, lambda found, arm=arm: write(arm, found))
        before, after = figures["looks"][0], figures["looks"][-1]
        print(f"{arm:<12} " + ", ".join(f"{asked}: knew {before[asked]['knew']['estimate']:.0%} before, {after[asked]['knew']['estimate']:.0%} after"
                                        for asked in ("question", "rephrased"))
              + f"; {after['skills_nats'] - before['skills_nats']:+.2f} nats a token of fixed texts; {figures['learning_s']:.0f} s")  # fmt: skip


def measure(arm: str, base: Path, settings: LearnerSettings, rounds: int, facts: Sequence[Fact], tunes: bool,
            write: Callable[[dict[str, Any]], None]) -> dict[str, Any]:  # fmt: skip
    """Learn, and look at what is known before, every few rounds and after; ``write`` is given what there is after every step."""
    policy = Policy(base, settings)
    trainer = Trainer(policy, TransformersEngine(policy), settings)
    questions = {"question": [fact.question for fact in facts], "rephrased": [fact.tuning if tunes else fact.rephrased for fact in facts]}
    found: dict[str, Any] = {"settings": settings.model_dump(exclude_defaults=True), "rounds": rounds, "learning_s": 0.0, "steps": [], "looks": []}
    found["looks"].append(look(policy, facts, questions))
    live = [labelled(arm, fact, answer) for fact, answer in zip(facts, found["looks"][0]["question"]["answers"], strict=True)]
    source, batch = random.Random(settings.seed), settings.judged_per_step
    for taken in range(1, rounds + 1):
        source.shuffle(live)
        for start in range(0, len(live), batch):
            began = time.perf_counter()
            everyday = [prompt(training_question(source).text) for _ in range(settings.prompts_per_step)]
            metrics = trainer.step(everyday, lambda pairs: [0.0] * len(pairs), live[start : start + batch]).metrics
            found["learning_s"] += time.perf_counter() - began
            found["steps"].append({name: round(value, 4) for name, value in metrics.items() if name.startswith(("thumb_", "hindsight_", "kl_nats"))})
            print(f"{arm} step {len(found['steps'])}: {found['steps'][-1]}", flush=True)
            write(found)
        if taken % LOOK_EVERY_ROUNDS == 0 or taken == rounds:
            found["looks"].append(look(policy, facts, questions))
            first, last = (found["looks"][n]["rephrased"]["knows"] for n in (0, -1))
            found["gained"] = asdict(paired_difference(first, last))
            write(found)
    return found


def look(policy: Policy, facts: Sequence[Fact], questions: dict[str, list[str]]) -> dict[str, Any]:
    """What is known now, with Wilson's interval, and how likely the fixed texts are."""
    seen: dict[str, Any] = {"skills_nats": skills(policy)}
    for name, asked in questions.items():
        said = answers(policy, asked)
        knowing = [knows(fact, answer) for fact, answer in zip(facts, said, strict=True)]
        seen[name] = {"knew": asdict(share(knowing)), "knows": knowing, "asked": asked, "answers": said}
    return seen


def lead(arms: dict[str, Any]) -> dict[str, Any]:
    """How much more of the rephrasings an arm with words knows than thumbs alone, of the same facts after as many rounds, with its interval."""
    known = {arm: found["looks"][-1]["rephrased"]["knows"] for arm, found in arms.items() if len(found["looks"]) > 1}
    return {arm: asdict(paired_difference(known["thumbs"], known[arm])) for arm in known
            if arm != "thumbs" and "thumbs" in known and len(known[arm]) == len(known["thumbs"])}  # fmt: skip


def prompt(question: str) -> Prompt:
    """As the guests' application sends it."""
    return (Message(role="system", content=SYSTEM), Message(role="user", content=question))


def labelled(arm: str, fact: Fact, answer: str) -> LabelledAnswer:
    """The live answer with what the person gave."""
    return LabelledAnswer(
        episode_id=fact.key,
        prompt=prompt(fact.question),
        answer=answer or "I do not know.",
        verdict=0.0,
        comments=(fact.words,) if arm == "comments" else (),
        correction=fact.words if arm == "corrections" else None,
    )


def answers(policy: Policy, questions: Sequence[str]) -> list[str]:
    """The likeliest answers, near enough: sampled at a low temperature, all at once."""
    ids = [policy.prompt_ids(prompt(question)) for question in questions]
    found = TransformersEngine(policy).sample(ids, samples=1, max_output_tokens=ANSWER_TOKENS, temperature=0.05, seed=0)
    return list(policy.tokenizer.batch_decode([rollout.output_ids for rollout in found], skip_special_tokens=True))


def knows(fact: Fact, answer: str) -> bool:
    """Whether the answer says what was corrected, and nothing of what others corrected: babble of all that was heard is no knowledge."""
    return [other.key for other in FACTS if other.said_in(answer)] == [fact.key]


@torch.no_grad()
def skills(policy: Policy) -> float:
    """Mean log-likelihood of a token of the texts by which skills kept are told, in nats; each text's first token is given."""
    rows = [Branches((first,), (tuple(rest),)) for first, *rest in (policy.tokenizer.encode(text) for text in TEXTS)]
    packed = pack(rows, policy.eos_id)
    return float(policy.stats(packed).logprobs_BT[packed.mask_BT].mean())


if __name__ == "__main__":
    main()
