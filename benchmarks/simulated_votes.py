"""Judged answers as a stream of episodes on which few people vote: what `benchmarks/reward.py` measures on.

Each line of the data holds ``prompt``, ``answer``, ``model`` and ``quality`` (0 to 1, a judge's, not people's). Every answer is an episode
of one of ``PEOPLE``; about one in ten gets a thumb, by a chance that depends on the person and the length of the prompt but not on
the answer. The thumb is up with probability ``quality``, turned round for the noise, and comes later by an exponential delay.
"""

import gzip
import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from reward.features.featurizer import Featurizer
from streams.core.events import Message

START = datetime(2026, 1, 1, tzinfo=UTC)
PEOPLE = 100
VOTE_RATIO = 0.1
NOISE = 0.2
DELAY_S = 60.0


@dataclass(frozen=True)
class Answer:
    """One judged answer as an episode: who asked, and how likely this person is to say something about an answer to this prompt."""

    number: int
    prompt: str
    text: str
    model: str
    quality: float
    person: int
    vote_chance: float
    voted: bool

    @property
    def words(self) -> int:
        """Length of the answer."""
        return len(self.text.split())


@dataclass(frozen=True)
class Vote:
    """One simulated thumb."""

    answer: Answer
    up: bool
    at: datetime

    @property
    def person(self) -> str:
        """Who gave it."""
        return f"person-{self.answer.person}"


@dataclass(frozen=True)
class Split:
    """Answers by what they are for. Nothing was ever voted on in the two unseen parts."""

    stream: list[Answer]
    unseen_prompts: list[Answer]
    unseen_models: list[Answer]

    @property
    def judged(self) -> list[Answer]:
        """The answers whose features are needed: voted on, or there to be ranked."""
        return [*(a for a in self.stream if a.voted), *self.unseen_prompts, *self.unseen_models]


def read(data: Path, ratio: float) -> Split:
    """The data, split by prompts (an eighth is unseen) and models (a sixth); ``ratio`` of all prompts is taken."""
    with gzip.open(data, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    rng = random.Random(0)
    prompts, models = sorted({row["prompt"] for row in rows}), sorted({row["model"] for row in rows})
    prompts = rng.sample(prompts, max(8, round(ratio * len(prompts))))
    new_prompts, new_models = set(prompts[: len(prompts) // 8]), set(rng.sample(models, len(models) // 6))
    ranked_prompts = set(prompts[len(prompts) // 8 :][: len(prompts) // 4])  # of the prompts that are known, those on which new models are ranked
    rows = [row for row in rows if row["prompt"] in set(prompts)]
    rng.shuffle(rows)
    people = [rng.randrange(PEOPLE) for _ in rows]
    eager = [rng.gauss(0, 1) for _ in range(PEOPLE)]
    drive = [eager[person] - 0.5 * (math.log(1 + len(row["prompt"].split())) - 3) for row, person in zip(rows, people, strict=True)]
    level = _level(drive)
    answers = []
    for number, (row, person, each) in enumerate(zip(rows, people, drive, strict=True)):
        chance = _sigmoid(level + each)
        answers.append(Answer(number, row["prompt"], row["answer"], row["model"], row["quality"], person, chance, rng.random() < chance))
    return Split(
        stream=[a for a in answers if a.prompt not in new_prompts and a.model not in new_models],
        unseen_prompts=[a for a in answers if a.prompt in new_prompts and a.model not in new_models],
        unseen_models=[a for a in answers if a.prompt in ranked_prompts and a.model in new_models],
    )


def features_of(answers: Sequence[Answer], featurizer: Featurizer, cache: Path) -> dict[int, Tensor]:
    """Features ``[D]`` by the answer's number, kept in ``cache`` between runs."""
    cache.mkdir(parents=True, exist_ok=True)
    named = hashlib.sha256("\x00".join(f"{a.prompt}\x00{a.text}" for a in answers).encode()).hexdigest()
    kept = cache / f"{featurizer.fingerprint[:16]}-{named[:16]}.safetensors"
    if not kept.exists():
        rows: dict[int, Tensor] = {}
        for n, a in enumerate(sorted(answers, key=lambda a: (a.prompt, a.number))):  # the last prompt's keys and values are kept by the featurizer
            rows[a.number] = featurizer.features([((Message(role="user", content=a.prompt),), a.text)])[0]
            if n % 100 == 0:
                print(f"features: {n} of {len(answers)}", flush=True)
        safetensors.torch.save_file({"features": torch.stack([rows[a.number] for a in answers])}, kept)
    stored_ND = safetensors.torch.load_file(kept)["features"]
    return {a.number: row_D for a, row_D in zip(answers, stored_ND, strict=True)}


def votes_on(answers: Sequence[Answer], seed: int, hostile: float = 0.0, knowing: bool = False, harsh: float = 0.0) -> list[Vote]:
    """The thumbs in the order in which they come. ``hostile`` of the people always vote the other way than they would.

    ``knowing``: they vote against the judge himself, without the noise that honest people have; one such vote undoes three honest ones.

    ``harsh``: who is more likely to vote than the middle person thumbs up with a probability lower by so much; so votes speak for few.
    """
    rng = random.Random(seed)
    middle = sorted(a.vote_chance for a in answers)[len(answers) // 2] if answers else 0.0
    votes = []
    for a in answers:
        chance = max(0.0, a.quality - harsh) if a.vote_chance > middle else a.quality
        up = (rng.random() < chance) != (rng.random() < NOISE)
        if a.person < hostile * PEOPLE:
            up = a.quality < 0.5 if knowing else not up
        delay = rng.expovariate(1 / DELAY_S)
        if a.voted:
            votes.append(Vote(a, up, START + timedelta(seconds=a.number + delay)))
    return sorted(votes, key=lambda vote: vote.at)


def _level(drive: Sequence[float]) -> float:
    """The constant under which the mean chance is ``VOTE_RATIO``, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = sum(_sigmoid(middle + each) for each in drive) / len(drive)
        low, high = (middle, high) if mean < VOTE_RATIO else (low, middle)
    return (low + high) / 2


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
