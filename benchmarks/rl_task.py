"""The task that Tidemill's learner and its peer are both given: the same questions in the same order, the same true reward, the same LoRA."""

import json
import random
import resource
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from infra.simulated_people.people_settings import PeopleSettings
from infra.simulated_people.preferences import PREFERENCES
from infra.simulated_people.simulated_questions import SimulatedQuestion, training_question
from learner.settings import LearnerSettings
from streams.core.events import Message

SYSTEM = PeopleSettings().system
PREFERENCE = PREFERENCES["speaks-to-me"]


@dataclass(frozen=True)
class Task:
    """Sizes and seed of one comparison."""

    base: str
    steps: int
    prompts: int
    samples: int
    tokens: int
    seed: int
    learning_rate: float = 6e-4
    temperature: float = 0.8
    rank: int = 8
    alpha: int = 16

    def questions(self) -> list[list[SimulatedQuestion]]:
        """By step."""
        source = random.Random(self.seed)
        return [[training_question(source) for _ in range(self.prompts)] for _ in range(self.steps)]

    def learner(self) -> LearnerSettings:
        """Ours, as near to what the peer does as can be: GRPO with the clip of PPO on tokens, no KL term, one update a step."""
        return LearnerSettings(
            rank=self.rank, alpha=self.alpha, seed=self.seed, prompts_per_step=self.prompts, samples_per_prompt=self.samples,
            max_output_tokens=self.tokens, temperature=self.temperature, learning_rate=self.learning_rate, kl_coefficient=0.0,
            clip_high=0.2, engine="transformers",
        )  # fmt: skip


@dataclass
class Curve:
    """What one side did: by step, seconds since the first step began, mean true reward and sampled tokens; seconds by phase."""

    side: str
    seconds: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    rollout_s: float = 0.0
    total_s: float = 0.0
    processor_s: list[float] = field(default_factory=list)
    """Processor seconds of this process since the first step began, by step: what other work on the machine cannot stretch."""
    peak_memory_mib: float = 0.0

    def clock(self) -> None:
        """The first step begins."""
        self._began = time.perf_counter(), time.process_time()

    def stepped(self, path: Path) -> None:
        """A step ended; what was measured is written, should the next one be cut off."""
        self.seconds.append(time.perf_counter() - self._began[0])
        self.processor_s.append(time.process_time() - self._began[1])
        self.total_s = self.seconds[-1]
        print(f"{self.side} step {len(self.seconds)}: {self.seconds[-1]:.0f} s, true reward {self.rewards[-1]:.2f}", flush=True)
        self.write(path)

    def write(self, path: Path) -> None:
        """Also notes the peak memory of this process."""
        self.peak_memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        path.write_text(json.dumps(asdict(self)))


def true_reward(question: SimulatedQuestion, answer: str) -> float:
    """The part of the simulated people's wishes that an answer meets: 0, 1/3, 2/3 or 1."""
    return sum(PREFERENCE.clause(number, question, answer) for number in range(len(PREFERENCE.clauses))) / len(PREFERENCE.clauses)


def prompt(question: SimulatedQuestion) -> tuple[Message, ...]:
    """As the demo's people send it."""
    return (Message(role="system", content=SYSTEM), Message(role="user", content=question.text))
