"""How good, how quick and how hard to fool the streaming reward model is, on judged answers. `make bench-reward DATA=judged.jsonl.gz`.

Episodes and votes are those of `simulated_votes.py`. Everything is seeded, figures that depend on the luck of the votes are means over ``--seeds``;
features are kept in ``--cache`` between runs. Prints and writes JSON.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.simulated_votes import DELAY_S, NOISE, PEOPLE, START, VOTE_RATIO, Answer, Split, Vote, features_of, read, votes_on
from reward.evaluation.calibration import calibration
from reward.features.featurizer import Featurizer
from reward.fit.buffer_entry import BufferEntry
from reward.fit.reward_model import RewardModel, fold_of
from reward.settings import RewardSettings
from reward.trust.vote_propensity import AnsweredTurn, effect_of, fit_propensity
from reward.updater.refitter import Refitter
from streams.core.events import Message

Judge = Callable[[Answer], float]
ChannelVerdict = list[tuple[float, Vote]]
REFITS_AT = (1_000, 10_000, 100_000)


@dataclass(frozen=True)
class Given:
    """Features that were computed before, by the answer's number."""

    fingerprint: str
    blocks: tuple[tuple[int, float], ...]
    rows: dict[int, Tensor]

    def features(self, pairs: Sequence[Any]) -> Tensor:
        raise NotImplementedError("the benchmark makes its entries from features it has")

    def judge(self, model: RewardModel) -> Judge:
        """A model's probability that people call the answer good."""
        return lambda answer: float(model.score(self.rows[answer.number][None]).mean_N[0])


def entries(votes: Sequence[Vote], refitter: Refitter, given: Given, weights: dict[int, float] | None = None) -> Iterator[BufferEntry]:
    """What the updater would make of these votes."""
    for vote in votes:
        x_D = given.rows[vote.answer.number].half()
        said = None if refitter.published is None else float(refitter.published.score(x_D[None].float()).mean_N[0])
        weight = weights[vote.answer.number] if weights else 1.0
        yield BufferEntry(f"{vote.answer.number}", float(vote.up), 1, vote.at, x_D, voters=(vote.person,), predicted=said, vote_weight=weight)


@dataclass(frozen=True)
class Streamed:
    """One pass over the votes: the last model, what was said of each vote before it was fitted, and how long each batch took."""

    model: RewardModel
    said: ChannelVerdict
    batch_s: list[float]
    results: dict[str, int]


def stream(votes: Sequence[Vote], settings: RewardSettings, given: Given, batch: int = 10) -> Streamed:
    """Test, then train, batch by batch; published as the rule allows."""
    refitter, said, took, results = Refitter(settings, given), [], [], {}
    for begin in range(0, len(votes), batch):
        now = votes[begin : begin + batch]
        new = list(entries(now, refitter, given))
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


def at_once(votes: Sequence[Vote], settings: RewardSettings, given: Given, weights: dict[int, float] | None = None) -> RewardModel:
    """One fit on all votes."""
    refitter = Refitter(settings, given)
    refitter.absorb(list(entries(votes, refitter, given, weights)))
    return refitter.fitted()


def ceiling(votes: Sequence[Vote], settings: RewardSettings, given: Given) -> tuple[RewardModel, ChannelVerdict]:
    """The same head on the same features, fitted in one batch on all votes; each vote told by a fold head that had all but its fold."""
    whole = settings.model_copy(update={"buffer_labels": 1_000_000, "calibration_half_life_labels": 1e6})
    model = at_once(votes, whole, given)
    x_ND = torch.stack([given.rows[v.answer.number].half().float() for v in votes])
    folds_N = torch.tensor([fold_of(f"{v.answer.number}", settings.folds) for v in votes])
    return model, list(zip(model.unseen(x_ND, folds_N).tolist(), votes, strict=True))


def pairwise(score: Judge, answers: Sequence[Answer]) -> float:
    """Part of the pairs of answers to one prompt, at least 0.2 apart in quality, that are ranked right."""
    scored = {a.number: score(a) for a in answers}
    right = [(scored[a.number] > scored[b.number]) == (a.quality > b.quality) for a, b in pairs_of(answers)]
    return sum(right) / max(1, len(right))


def pairs_of(answers: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    """The pairs that `pairwise` ranks."""
    by_prompt: dict[str, list[Answer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    groups = by_prompt.values()
    return [(a, b) for group in groups for i, a in enumerate(group) for b in group[i + 1 :] if abs(a.quality - b.quality) >= 0.2]


def river(votes: Sequence[Vote], given: Given) -> tuple[ChannelVerdict, Judge] | None:
    """River's online logistic regression on the same features, test-then-train; none where River is not installed."""
    try:
        from river import linear_model, optim, preprocessing  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        print("River is not installed, so the run does without it: pip install 'tidemill[bench]'")
        return None
    best: tuple[float, ChannelVerdict, Judge] | None = None
    for rate in (0.0003, 0.001, 0.003):  # its best learning rate of three, by hindsight: ours had none
        model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optimizer=optim.SGD(rate), l2=0.001)
        said: ChannelVerdict = []
        for vote in votes:
            x = dict(enumerate(given.rows[vote.answer.number].tolist()))
            said.append((model.predict_proba_one(x).get(True, 0.5), vote))
            model.learn_one(x, vote.up)
        accuracy = told(said)["accuracy"]
        if best is None or accuracy > best[0]:
            best = (accuracy, said, lambda a, m=model: m.predict_proba_one(dict(enumerate(given.rows[a.number].tolist()))).get(True, 0.5))  # type: ignore[misc]
    assert best is not None
    return best[1], best[2]


def told(said: ChannelVerdict) -> dict[str, float]:
    """Accuracy and calibration on the votes themselves (noisy), and accuracy on what the judge holds."""
    chances, ups = torch.tensor([c for c, _ in said]), torch.tensor([float(v.up) for _, v in said])
    figures = calibration(chances, ups)
    held = [(c >= 0.5) == (v.answer.quality >= 0.5) for c, v in said]
    return {
        "votes": len(said),
        "accuracy": figures.accuracy,
        "ece": figures.ece,
        "brier": figures.brier,
        "auc": figures.auc or 0.5,
        "true_accuracy": sum(held) / len(held),
    }


def mean(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of tables of equal keys, with four digits."""
    return {key: round(statistics.fmean(table[key] for table in tables), 4) for key in tables[0]}


def ranking(judge: Judge, split: Split) -> dict[str, float]:
    """Pairwise accuracy on both unseen parts."""
    return {"unseen_prompts": pairwise(judge, split.unseen_prompts), "unseen_models": pairwise(judge, split.unseen_models)}


def streamed(split: Split, settings: RewardSettings, given: Given, seeds: int) -> dict[str, Any]:
    """Test-then-train and ranking, ours beside the ceiling, River and length."""
    by_number = {a.number: a for a in [*split.stream, *split.unseen_prompts, *split.unseen_models]}
    lengths = Given("length", ((1, 1.0),), {n: torch.tensor([float(by_number[n].words) ** 0.5]) for n in given.rows})
    trained: dict[str, list[dict[str, float]]] = {"ours": [], "ceiling": [], "length": [], "river": []}
    ranked: dict[str, list[dict[str, float]]] = {name: [] for name in trained}
    over_time: list[list[dict[str, float]]] = []
    batch_s: list[float] = []
    results: dict[str, int] = {}
    for seed in range(seeds):
        votes = votes_on(split.stream, seed)
        ours = stream(votes, settings, given)
        counted = {id(v) for _, v in ours.said}  # all are compared on the votes that came after our first version
        by_length, (whole, whole_said) = stream(votes, settings, lengths), ceiling(votes, settings, given)
        found: dict[str, tuple[ChannelVerdict, Judge]] = {
            "ours": (ours.said, given.judge(ours.model)),
            "ceiling": (whole_said, given.judge(whole)),
            "length": (by_length.said, lengths.judge(by_length.model)),
        }
        if (online := river(votes, given)) is not None:
            found["river"] = online
        for name, (said, judge) in found.items():
            trained[name].append(told([each for each in said if id(each[1]) in counted]))
            ranked[name].append(ranking(judge, split))
        quarter = len(ours.said) // 4
        over_time.append([told(ours.said[i * quarter : (i + 1) * quarter]) for i in range(4)])
        batch_s += ours.batch_s[len(ours.batch_s) // 2 :]
        results = {key: results.get(key, 0) + ours.results.get(key, 0) for key in {*results, *ours.results}}
        print(f"seed {seed}: { ({name: round(tables[-1]['accuracy'], 4) for name, tables in trained.items() if tables}) }", flush=True)
    batch_s.sort()
    return {
        "test_then_train": {name: mean(tables) for name, tables in trained.items() if tables},
        "over_time": [mean(quarter) for quarter in zip(*over_time, strict=True)],
        "pairwise": {name: mean(tables) for name, tables in ranked.items() if tables},
        "refits": results,
        "refit_s_second_half": {"p50": batch_s[len(batch_s) // 2], "p99": batch_s[int(len(batch_s) * 0.99)]},
    }


def hostile(split: Split, settings: RewardSettings, given: Given, seeds: int) -> dict[str, Any]:
    """One person in ten votes the other way: what that costs in points of pairwise accuracy, with and without our weights."""
    ways: dict[str, dict[str, bool]] = {
        "capped_only": {"weigh_reliability": False, "smooth_by_reliability": False},
        "smoothed": {"weigh_reliability": False, "smooth_by_reliability": True},
        "weighed": {"weigh_reliability": True, "smooth_by_reliability": False},
    }
    attacks: dict[str, dict[str, Any]] = {"calm": {}, "contrary": {"hostile": 0.1}, "knowing": {"hostile": 0.1, "knowing": True}}
    report: dict[str, Any] = {}
    for name, update in ways.items():
        shape = settings.model_copy(update=update)
        draws = {
            attack: [ranking(given.judge(at_once(votes_on(split.stream, seed, **how), shape, given)), split) for seed in range(seeds)]
            for attack, how in attacks.items()
        }
        report[name] = {attack: mean(tables) for attack, tables in draws.items()}
        calm = report[name]["calm"]
        report[name]["cost_points_by_draw"] = {
            a: [round(100 * (c["unseen_prompts"] - d["unseen_prompts"]), 2) for c, d in zip(draws["calm"], draws[a], strict=True)]
            for a in ("contrary", "knowing")
        }
        report[name]["cost_points"] = {
            a: {part: round(100 * (calm[part] - report[name][a][part]), 2) for part in calm} for a in ("contrary", "knowing")
        }
        print(f"hostile, {name}: {report[name]}", flush=True)
    found_out = mean([  # the most that weights could do: the hostile are known, and left out
        ranking(given.judge(at_once([v for v in votes_on(split.stream, seed) if v.answer.person >= 0.1 * PEOPLE], settings, given)), split)
        for seed in range(seeds)
    ])  # fmt: skip
    calm = report["capped_only"]["calm"]
    report["left_out"] = {"contrary": found_out, "cost_points": {part: round(100 * (calm[part] - found_out[part]), 2) for part in calm}}
    return report


def shrinkage(split: Split, settings: RewardSettings, given: Given, seeds: int) -> dict[str, Any]:
    """Pairwise accuracy by reward.l2 when it is not left to the labels: how much the ranking depends on it when votes are this noisy."""
    shapes = {f"{l2:g}": settings.model_copy(update={"l2": l2, "l2_in_doubt": l2}) for l2 in (1.0, 3.0, 10.0, 30.0, 100.0)}
    return {
        l2: mean([ranking(given.judge(at_once(votes_on(split.stream, seed), shape, given)), split) for seed in range(seeds)])
        for l2, shape in shapes.items()
    }


def who_votes(split: Split, settings: RewardSettings, given: Given, seeds: int, harsh: float = 0.3) -> dict[str, Any]:
    """Who votes more than others is harder to please: how far the model is from what all people would say, with and without weights."""
    asked = [AnsweredTurn((Message(role="user", content=a.prompt),), f"{a.person}", a.voted) for a in sorted(split.stream, key=lambda a: a.number)]
    model = fit_propensity("default", asked)
    weights = {a.number: model.weight((Message(role="user", content=a.prompt),), f"{a.person}") for a in split.stream if a.voted}
    middle = sorted(a.vote_chance for a in split.stream)[len(split.stream) // 2]
    keen = sum(a.vote_chance > middle for a in split.unseen_prompts) / len(split.unseen_prompts)
    everybody = {  # what somebody picked at random would say, noise and all
        a.number: NOISE + (1 - 2 * NOISE) * (keen * max(0.0, a.quality - harsh) + (1 - keen) * a.quality) for a in split.unseen_prompts
    }
    rows: dict[str, list[dict[str, float]]] = {"as_given": [], "weighted": []}
    effects = []
    for seed in range(seeds):
        votes = votes_on(split.stream, seed, harsh=harsh)
        by_number = {v.answer.number: float(v.up) for v in votes}
        given_by = [(one, by_number[a.number]) for one, a in zip(asked, sorted(split.stream, key=lambda a: a.number), strict=True) if a.voted]
        effects.append(effect_of(model, asked, given_by).__dict__)
        for name, used in (("as_given", None), ("weighted", weights)):
            judge = given.judge(at_once(votes, settings, given, used))
            gaps = [judge(a) - everybody[a.number] for a in split.unseen_prompts]
            rows[name].append({
                "bias": statistics.fmean(gaps),
                "rms": statistics.fmean(g * g for g in gaps) ** 0.5,
                "pairwise": pairwise(judge, split.unseen_prompts),
            })  # fmt: skip
    return {"harsh": harsh, "effect": mean(effects), **{name: mean(tables) for name, tables in rows.items()}}


def refit_time(votes: Sequence[Vote], settings: RewardSettings, given: Given, history: int) -> float:
    """Seconds for one refit after ``history`` labels (the votes again and again, as new episodes); the median of three."""
    refitter = Refitter(settings, given)
    for begin in range(0, history, 1000):
        again = [votes[(begin + i) % len(votes)] for i in range(min(1000, history - begin))]
        made = [
            replace(e, episode_id=f"{begin + i}", newest_feedback_at=START + timedelta(seconds=begin + i))
            for i, e in enumerate(entries(again, refitter, given))
        ]
        refitter.absorb(made)
    took = []
    for _ in range(3):
        began = time.perf_counter()
        refitter.refit()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def measure(split: Split, settings: RewardSettings, given: Given, seeds: int) -> dict[str, Any]:
    """Every figure of the report."""
    votes = votes_on(split.stream, 0)
    report: dict[str, Any] = {
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg(), "torch_threads": torch.get_num_threads()},
        "world": {
            "episodes": len(split.stream),
            "votes": len(votes),
            "people": PEOPLE,
            "vote_ratio": VOTE_RATIO,
            "noise": NOISE,
            "delay_s": DELAY_S,
            "seeds": seeds,
            "answer_tokens": settings.max_answer_tokens,
            "pairs": {"unseen_prompts": len(pairs_of(split.unseen_prompts)), "unseen_models": len(pairs_of(split.unseen_models))},
        },
    }
    report |= streamed(split, settings, given, seeds)
    report["hostile"] = hostile(split, settings, given, seeds)
    report["who_votes"] = who_votes(split, settings, given, seeds)
    report["pairwise_by_l2"] = shrinkage(split, settings, given, seeds)
    report["refit_s_by_labels_seen"] = {str(n): round(refit_time(votes, settings, given, n), 3) for n in REFITS_AT}
    ours, best = report["test_then_train"]["ours"], report["test_then_train"]["ceiling"]
    report["of_ceiling"] = {
        "test_then_train": round(ours["accuracy"] / best["accuracy"], 4),
        **{part: round(report["pairwise"]["ours"][part] / report["pairwise"]["ceiling"][part], 4) for part in report["pairwise"]["ours"]},
    }
    return report


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--backbone", type=Path, required=True, help="folder of a dense language model, such as the base's dense/")
    arguments.add_argument("--cache", type=Path, default=Path("runs/bench-reward"))
    arguments.add_argument("--prompts", type=float, default=1.0, help="part of the data's prompts that is taken")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--answer-tokens", type=int, default=128, help="how much of an answer the features see")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--out", type=Path, default=Path("benchmarks/results/reward.json"))
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    settings = RewardSettings(max_answer_tokens=given.answer_tokens)
    featurizer = Featurizer(given.backbone, settings)
    split = read(given.data, given.prompts)
    rows = features_of(split.judged, featurizer, given.cache)
    report = measure(split, settings, Given(featurizer.fingerprint, featurizer.blocks, rows), given.seeds)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
