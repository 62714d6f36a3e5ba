"""How good, how quick and how hard to fool the streaming reward model is, on judged answers. `make bench-reward DATA=judged.jsonl.gz`.

Each line of the data holds ``prompt``, ``answer``, ``model`` and ``quality`` (0 to 1). Votes are simulated from ``quality``: a person gives a thumb
up with that probability, turned round for the noise, later than the answer by an exponential delay. The qualities are a strong model's
judgement, not people's. Everything is seeded; features are kept in ``--cache`` between runs.
"""

import argparse
import gzip
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from reward.buffer import Entry
from reward.features import Featurizer
from reward.model import RewardModel
from reward.refit import Refitter
from reward.settings import RewardSettings
from reward.validation import calibration
from streams.events import Message

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Answer:
    """One judged answer and its features."""

    prompt: str
    model: str
    words: int
    quality: float
    features_D: Tensor


@dataclass(frozen=True)
class Vote:
    """One simulated thumb."""

    answer: Answer
    up: bool
    person: str
    at: datetime


@dataclass(frozen=True)
class Given:
    """Features that were computed before."""

    fingerprint: str
    blocks: tuple[tuple[int, float], ...]

    def features(self, pairs: Sequence[Any]) -> Tensor:
        raise NotImplementedError("the benchmark makes its entries from features it has")


def answers_of(data: Path, count: int, featurizer: Featurizer, cache: Path) -> list[Answer]:
    """``count`` answers spread over all prompts, with features."""
    with gzip.open(data, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    rows = sorted(rows[:count], key=lambda r: r["prompt"])
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"{featurizer.fingerprint[:16]}-{count}.safetensors"
    if not kept.exists():
        features = []
        for n, row in enumerate(rows):
            features.append(featurizer.features([((Message(role="user", content=row["prompt"]),), row["answer"])])[0])
            if n % 200 == 0:
                print(f"features: {n} of {count}", flush=True)
        safetensors.torch.save_file({"features": torch.stack(features)}, kept)
    stored_ND = safetensors.torch.load_file(kept)["features"]
    return [Answer(r["prompt"], r["model"], len(r["answer"].split()), r["quality"], x) for r, x in zip(rows, stored_ND, strict=True)]


def votes_on(answers: Sequence[Answer], people: int, noise: float, hostile: float, seed: int) -> list[Vote]:
    """A thumb for each answer, in the order in which the thumbs arrive. ``hostile`` of the people always vote the other way."""
    rng = random.Random(seed)
    votes = []
    for n, answer in enumerate(rng.sample(list(answers), len(answers))):
        person = rng.randrange(people)
        up = (rng.random() < answer.quality) != (rng.random() < noise)
        up = answer.quality < 0.5 if person < hostile * people else up
        votes.append(Vote(answer, up, f"person-{person}", START + timedelta(seconds=n + rng.expovariate(1 / 60))))
    return sorted(votes, key=lambda vote: vote.at)


def entries(votes: Sequence[Vote], refitter: Refitter) -> Iterator[Entry]:
    """What the updater would make of these votes."""
    for vote in votes:
        x_D = vote.answer.features_D.half()
        said = None if refitter.published is None else float(refitter.published.score(x_D[None].float()).mean_N[0])
        name = f"{vote.person}/{vote.answer.prompt}/{vote.answer.model}"
        yield Entry(name, float(vote.up), 1, vote.at, x_D, voters=(vote.person,), predicted=said)


@dataclass(frozen=True)
class Streamed:
    """One pass over the votes: the last model, what was said of each vote before it was fitted, and how long each batch took."""

    model: RewardModel
    said: list[tuple[float, Vote]]
    batch_s: list[float]
    results: dict[str, int]


def stream(votes: Sequence[Vote], settings: RewardSettings, given: Given, batch: int = 10) -> Streamed:
    """Test, then train, batch by batch; published as the rule allows."""
    refitter, said, took, results = Refitter(settings, given), [], [], {}
    for begin in range(0, len(votes), batch):
        now = votes[begin : begin + batch]
        new = list(entries(now, refitter))
        said += [(entry.predicted, vote) for entry, vote in zip(new, now, strict=True) if entry.predicted is not None]
        began = time.perf_counter()
        refitter.absorb(new)
        refit = refitter.refit()
        took.append(time.perf_counter() - began)
        results[refit.result] = results.get(refit.result, 0) + 1
        refitter.published = refit.model or refitter.published
    if refitter.published is None:
        raise SystemExit("too few votes for a first version")
    return Streamed(refitter.published, said, took, results)


def pairwise(score: Callable[[Answer], float], answers: Sequence[Answer]) -> tuple[float, int]:
    """Part of the pairs of answers to one prompt, at least 0.2 apart in quality, that are ranked right; and how many there are."""
    by_prompt: dict[str, list[Answer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    right = [
        (score(a) > score(b)) == (a.quality > b.quality)
        for group in by_prompt.values()
        for i, a in enumerate(group)
        for b in group[i + 1 :]
        if abs(a.quality - b.quality) >= 0.2
    ]
    return sum(right) / max(1, len(right)), len(right)


def judged_by(model: RewardModel) -> Callable[[Answer], float]:
    return lambda answer: float(model.score(answer.features_D[None]).mean_N[0])


def river(votes: Sequence[Vote]) -> tuple[list[tuple[float, Vote]], Callable[[Answer], float]] | None:
    """River's online logistic regression on the same features, test-then-train; none where River is not installed."""
    try:
        from river import linear_model, optim, preprocessing  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        print("River is not installed, so the run does without it: pip install 'tidemill[bench]'")
        return None
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optimizer=optim.SGD(0.001), l2=0.001)
    said = []
    for vote in votes:
        x = dict(enumerate(vote.answer.features_D.tolist()))
        said.append((model.predict_proba_one(x).get(True, 0.5), vote))
        model.learn_one(x, vote.up)
    return said, lambda answer: model.predict_proba_one(dict(enumerate(answer.features_D.tolist()))).get(True, 0.5)


def told(said: Sequence[tuple[float, Vote]]) -> dict[str, float]:
    """Accuracy and calibration on the votes themselves (noisy), and accuracy on what the judge holds."""
    chances, ups = torch.tensor([c for c, _ in said]), torch.tensor([float(v.up) for _, v in said])
    figures = calibration(chances, ups)
    held = [(c >= 0.5) == (v.answer.quality >= 0.5) for c, v in said]
    return {
        "accuracy": figures.accuracy,
        "ece": figures.ece,
        "brier": figures.brier,
        "auc": figures.auc or 0.5,
        "true_accuracy": sum(held) / len(held),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--backbone", type=Path, required=True, help="folder of a dense language model, such as the base's dense/")
    arguments.add_argument("--cache", type=Path, default=Path("runs/bench-reward"))
    arguments.add_argument("--answers", type=int, default=2000)
    arguments.add_argument("--answer-tokens", type=int, default=128, help="how much of an answer the features see")
    arguments.add_argument("--out", type=Path, default=Path("runs/bench-reward/report.json"))
    given = arguments.parse_args()
    torch.set_num_threads(2)
    settings = RewardSettings(max_answer_tokens=given.answer_tokens)
    featurizer = Featurizer(given.backbone, settings)
    answers = answers_of(given.data, given.answers, featurizer, given.cache)
    report = measure(answers, settings, Given(featurizer.fingerprint, featurizer.blocks))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


def measure(answers: Sequence[Answer], settings: RewardSettings, given: Given) -> dict[str, Any]:
    """Every figure of the report."""
    prompts, models = sorted({a.prompt for a in answers}), sorted({a.model for a in answers})
    rng = random.Random(1)
    new_prompts, new_models = set(rng.sample(prompts, len(prompts) // 4)), set(rng.sample(models, len(models) // 4))
    known = [a for a in answers if a.prompt not in new_prompts and a.model not in new_models]
    unseen_prompts = [a for a in answers if a.prompt in new_prompts]
    unseen_models = [a for a in answers if a.model in new_models]
    votes = votes_on(known, people=100, noise=0.2, hostile=0.0, seed=2)
    ours = stream(votes, settings, given)

    # The ceiling sees all votes at once and forgets none; length alone gets the same head.
    whole = settings.model_copy(update={"buffer_labels": 1_000_000, "calibration_half_life_labels": 1e6})
    ceiling = stream(votes, whole, given, batch=len(votes)).model
    only_length = Given("length", ((1, 1.0),))
    shortened = {id(v.answer): replace(v.answer, features_D=torch.tensor([float(v.answer.words) ** 0.5])) for v in votes}
    by_length = stream([replace(v, answer=shortened[id(v.answer)]) for v in votes], settings, only_length)
    report: dict[str, Any] = {"answers": len(answers), "votes": len(votes), "noise": 0.2, "results": ours.results}
    report["test_then_train"] = {"ours": told(ours.said), "length": told(by_length.said)}
    quarter = max(1, len(ours.said) // 4)
    report["over_time"] = [told(ours.said[i : i + quarter]) for i in range(0, len(ours.said) - quarter + 1, quarter)]
    judges: dict[str, Callable[[Answer], float]] = {"ours": judged_by(ours.model), "ceiling": judged_by(ceiling), "length": lambda a: a.words}
    if (online := river(votes)) is not None:
        report["test_then_train"]["river"], judges["river"] = told(online[0]), online[1]
    report["pairwise"] = {
        name: {"unseen_prompts": pairwise(judge, unseen_prompts), "unseen_models": pairwise(judge, unseen_models)} for name, judge in judges.items()
    }
    report["hostile"] = {}
    attacked = votes_on(known, people=100, noise=0.2, hostile=0.1, seed=2)
    for name, weighed in (("without_weights", False), ("with_weights", True)):
        model = stream(attacked, settings.model_copy(update={"weigh_reliability": weighed}), given).model
        report["hostile"][name] = pairwise(judged_by(model), unseen_prompts)
    took = sorted(ours.batch_s[len(ours.batch_s) // 2 :])
    report["batch_s"] = {"p50": took[len(took) // 2], "p99": took[min(len(took) - 1, int(len(took) * 0.99))]}
    report["refit_s_by_labels_seen"] = {str(n): refit_time(votes, settings, given, n) for n in (1_000, 10_000, 100_000)}
    return report


def refit_time(votes: Sequence[Vote], settings: RewardSettings, given: Given, history: int) -> float:
    """Seconds for one refit after ``history`` labels (the votes again and again, as new episodes)."""
    refitter = Refitter(settings, given)
    for begin in range(0, history, 1000):
        again = [votes[(begin + i) % len(votes)] for i in range(min(1000, history - begin))]
        made = [
            replace(e, episode_id=f"{begin + i}", newest_feedback_at=START + timedelta(seconds=begin + i))
            for i, e in enumerate(entries(again, refitter))
        ]
        refitter.absorb(made)
    began = time.perf_counter()
    refitter.refit()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
