"""Vote propensity: few people vote, and not at random. How likely was a vote, and which weights correct for it?

A logistic model of "somebody gave a thumb or a rating" over one policy's episodes, with and without votes. It uses the prompt and the person's
history, never the answer: voting only on bad answers is a matter of what was answered, not of who votes. A verdict is then weighted by the overall
vote rate divided by its own probability (inverse propensity, Horvitz and Thompson 1952; stabilised, Robins et al. 2000), clipped.

Shapes: ``N`` episodes, ``C`` covariates.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward.evaluation.calibration import area_under_curve
from reward.fit.label_entries import SPOKEN, short_hash
from reward.fit.logistic_solver import solve
from streams.core.errors import ConfigError
from streams.core.events import Label, Message

FORMAT = 1
COVARIATES = ("log words of the prompt", "a question", "log turns", "person's history")
PRIOR_EPISODES = 5.0
"""Prior: a person starts with this many episodes at the overall vote rate."""
L2 = 1.0
MOST_PEOPLE = 100_000


@dataclass(frozen=True)
class AnsweredTurn:
    """An episode before its answer, and whether anybody voted on it. ``person`` is hashed; None when no person is named."""

    messages: Sequence[Message]
    person: str | None
    voted: bool


@dataclass(frozen=True)
class Propensity:
    """A fitted model of who votes. Immutable; ``people`` are (episodes, votes) by hashed person."""

    policy: str
    rate: float
    """Part of all episodes that got a vote."""
    clip: float
    """Largest weight; the smallest is its inverse."""
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    people: Mapping[str, tuple[int, int]]

    def chance(self, messages: Sequence[Message], person: str | None) -> float:
        """Probability of a vote on an answer to this, between 0 and 1."""
        x = covariates(messages, self.people.get(person or "", (0, 0)), self.rate)
        z = self.bias + sum(w * (v - c) / s for w, v, c, s in zip(self.weights, x, self.centre, self.spread, strict=True))
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, z))))

    def weight(self, messages: Sequence[Message], person: str | None) -> float:
        """Weight of a verdict on an answer to this; 1 at the overall vote rate."""
        return min(self.clip, max(1 / self.clip, self.rate / self.chance(messages, person)))

    def weight_of(self, label: Label) -> float:
        """Weight of a label: the mean over the people who gave feedback."""
        people = sorted({short_hash(vote.user_id) for vote in label.votes if vote.kind in SPOKEN})
        return sum(self.weight(label.messages, person) for person in people) / len(people) if people else 1.0

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT, **self.__dict__}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Propensity":
        """Read what ``save`` wrote. Raises ConfigError when it is anything else."""
        try:
            body: dict[str, Any] = json.loads(path.read_text())
            if body.pop("format") != FORMAT:
                raise ValueError(f"this reads format {FORMAT} only")
            people = {person: (int(asked), int(voted)) for person, (asked, voted) in body["people"].items()}
            centre, spread, weights = (tuple(float(v) for v in body[name]) for name in ("centre", "spread", "weights"))
            if not len(centre) == len(spread) == len(weights) == len(COVARIATES):
                raise ValueError(f"it needs {len(COVARIATES)} covariates")
            return cls(str(body["policy"]), float(body["rate"]), float(body["clip"]), centre, spread, weights, float(body["bias"]), people)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"reward.propensity_file = {path} is not what `tidemill reward propensity` writes: {error}") from None


@dataclass(frozen=True)
class WeightingEffect:
    """The effect of inverse-propensity weights on the verdicts."""

    episodes: int
    votes: int
    auc: float
    """How well the model predicts who votes. 0.5: not at all, and the weights change nothing."""
    mean_as_given: float
    mean_weighted: float
    effective_ratio: float
    """Effective sample size of the weighted votes over their number (Kish 1965): what the correction costs."""

    def __str__(self) -> str:
        return (
            f"{self.votes} of {self.episodes} episodes got a vote; the model predicts votes with AUC {self.auc:.2f}; "
            f"mean verdict {self.mean_as_given:.3f} as given, {self.mean_weighted:.3f} weighted; "
            f"effective sample size {self.effective_ratio:.0%} of the votes"
        )


def covariates(messages: Sequence[Message], history: tuple[int, int], rate: float) -> tuple[float, ...]:
    """The covariates ``[C]`` of a prompt, known before its answer. ``history``: the person's episodes, and how many of them got a vote."""
    asked = next((m.text for m in reversed(messages) if m.role == "user"), "")
    episodes, votes = history
    habit = (votes + PRIOR_EPISODES * rate) / (episodes + PRIOR_EPISODES)
    return (math.log1p(len(asked.split())), float("?" in asked), math.log1p(len(messages)), math.log(habit / (1 - habit)))


def fit_propensity(policy: str, asked: Sequence[AnsweredTurn], clip: float = 5.0) -> Propensity:
    """Fit on a policy's episodes, oldest first. Each is described by the person's history *before* it. Raises ConfigError without votes."""
    votes = sum(each.voted for each in asked)
    if not 0 < votes < len(asked):
        raise ConfigError(f"{votes} of {len(asked)} episodes got a vote: the model needs episodes with and without votes")
    rate = votes / len(asked)
    people: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    rows = []
    for each in asked:
        episodes, given = people[each.person] if each.person else (0, 0)
        rows.append(covariates(each.messages, (episodes, given), rate))
        if each.person:
            people[each.person] = (episodes + 1, given + each.voted)
    x_NC = torch.tensor(rows, dtype=torch.float64)
    centre_C, spread_C = x_NC.mean(0), x_NC.std(0, correction=0) + 1e-6
    ones_N = torch.ones(len(rows), dtype=torch.float64)
    voted_N = torch.tensor([float(each.voted) for each in asked], dtype=torch.float64)
    w_1C, b_1 = solve((x_NC - centre_C) / spread_C, ones_N, voted_N, ones_N[:, None], L2)
    busiest = sorted(people, key=lambda person: (-people[person][0], person))[:MOST_PEOPLE]
    known = {person: people[person] for person in sorted(busiest)}
    centre, spread, weights = (tuple(row.tolist()) for row in (centre_C, spread_C, w_1C[0]))
    return Propensity(policy, rate, clip, centre, spread, weights, float(b_1[0]), known)


def effect_of(model: Propensity, asked: Sequence[AnsweredTurn], verdicts: Sequence[tuple[AnsweredTurn, float]]) -> WeightingEffect:
    """The effect on ``verdicts``, each with its episode."""
    chances_N = torch.tensor([model.chance(each.messages, each.person) for each in asked])
    voted_N = torch.tensor([each.voted for each in asked])
    weights = torch.tensor([model.weight(each.messages, each.person) for each, _ in verdicts], dtype=torch.float64)
    values = torch.tensor([verdict for _, verdict in verdicts], dtype=torch.float64)
    return WeightingEffect(
        episodes=len(asked),
        votes=len(verdicts),
        auc=_auc(chances_N, voted_N),
        mean_as_given=float(values.mean()),
        mean_weighted=float((weights * values).sum() / weights.sum()),
        effective_ratio=float(weights.sum() ** 2 / (weights**2).sum() / len(weights)),
    )


def _auc(chances_N: Tensor, voted_N: Tensor) -> float:
    found = area_under_curve(chances_N, voted_N)
    return 0.5 if found is None else found
