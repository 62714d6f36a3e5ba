"""Who votes, and what it takes to make up for it."""

import json
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reward.fit.label_entries import short_hash
from reward.trust.vote_propensity import AnsweredTurn, Propensity, covariates, effect_of, fit_propensity
from reward.updater.refitter import Refitter
from streams.core.errors import ConfigError
from streams.core.events import FeedbackKind, Label, Message, Vote
from tests.unit.reward.test_refitter import SMALL, CountedLetters, checksum, label, refitter

PEOPLE = 40


def asked(words: int, person: str | None, voted: bool) -> AnsweredTurn:
    return AnsweredTurn((Message(role="user", content="tea " * words),), person, voted)


def world(seed: int = 0, episodes: int = 3000) -> tuple[list[AnsweredTurn], list[float]]:
    """Half the people are keen (30 % vote) and hard to please (20 % up); the others vote 3 % and are pleased (80 %): half of all answers are good."""
    rng = random.Random(seed)
    made, goods = [], []
    for _ in range(episodes):
        person = rng.randrange(PEOPLE)
        keen = person % 2 == 0
        made.append(asked(rng.choice([3, 30]), f"p-{person}", rng.random() < (0.3 if keen else 0.03)))
        goods.append(float(rng.random() < (0.2 if keen else 0.8)))
    return made, goods


def test_weights_bring_the_verdicts_of_few_near_to_those_of_all() -> None:
    made, goods = world()
    model = fit_propensity("default", made, clip=20)
    effect = effect_of(model, made, [(one, good) for one, good in zip(made, goods, strict=True) if one.voted])
    assert effect.auc > 0.7
    assert effect.mean_as_given < 0.35
    assert abs(effect.mean_weighted - 0.5) < 0.08
    assert 0.1 < effect.effective_ratio < 0.8


def test_where_votes_come_at_random_the_weights_change_nothing() -> None:
    rng = random.Random(1)
    made = [asked(rng.choice([3, 30]), f"p-{rng.randrange(PEOPLE)}", rng.random() < 0.3) for _ in range(3000)]
    model = fit_propensity("default", made)
    assert all(0.6 < model.weight(one.messages, one.person) < 1.7 for one in made)


def test_long_prompts_that_are_voted_on_less_weigh_more() -> None:
    rng = random.Random(2)
    made = [asked(words, None, rng.random() < (0.4 if words < 10 else 0.1)) for words in rng.choices([3, 30], k=2000)]
    model = fit_propensity("default", made)
    short, long = asked(3, None, True), asked(30, None, True)
    assert model.chance(short.messages, None) == pytest.approx(0.4, abs=0.04)
    assert model.chance(long.messages, None) == pytest.approx(0.1, abs=0.03)
    assert model.weight(long.messages, None) == pytest.approx(0.25 / 0.1, rel=0.25)


def test_no_weight_leaves_the_clip() -> None:
    rng = random.Random(3)
    made = [asked(words, None, rng.random() < (0.9 if words < 10 else 0.005)) for words in rng.choices([3, 300], k=2000)]
    model = fit_propensity("default", made, clip=3)
    assert model.weight(asked(300, None, True).messages, None) == 3
    assert 1 / 3 <= model.weight(asked(3, None, True).messages, None) < 1


def test_a_person_is_told_by_what_they_did_before_not_by_the_vote_itself() -> None:
    """One episode a person: nobody has a history, so that who votes cannot be told, although every voter votes always."""
    made = [asked(3, f"p-{n}", n % 4 == 0) for n in range(400)]
    model = fit_propensity("default", made)
    assert model.weights[3] == pytest.approx(0, abs=1e-6)


def test_the_answer_is_not_among_what_is_known() -> None:
    messages = (Message(role="user", content="tea? now"), Message(role="assistant", content="no " * 50))
    assert covariates(messages, (0, 0), 0.5)[:2] == (pytest.approx(1.0986, abs=1e-4), 1.0)


def test_without_votes_or_without_silence_nothing_is_learned() -> None:
    for voted in (True, False):
        with pytest.raises(ConfigError, match="got a vote"):
            fit_propensity("default", [asked(3, "p", voted)] * 5)


def test_what_was_saved_is_what_is_loaded_and_anything_else_is_refused(tmp_path: Path) -> None:
    model = fit_propensity("default", world(episodes=300)[0])
    model.save(tmp_path / "who" / "votes.json")
    assert Propensity.load(tmp_path / "who" / "votes.json") == model
    body = json.loads((tmp_path / "who" / "votes.json").read_text())
    for spoiled in ({**body, "format": 2}, {**body, "weights": [1.0]}, {"format": 1}, [1]):
        (tmp_path / "spoiled.json").write_text(json.dumps(spoiled))
        with pytest.raises(ConfigError, match="propensity_file"):
            Propensity.load(tmp_path / "spoiled.json")


def by(person: str, number: int, verdict: float) -> Label:
    vote = Vote(feedback_id=f"v-{number}", user_id=person, kind=FeedbackKind.THUMB, value=verdict, at=datetime(2026, 1, 1, tzinfo=UTC))
    return label(number, verdict, at=number).model_copy(update={"votes": (vote,)})


def test_the_refit_counts_the_rare_voter_more() -> None:
    made, _ = world()
    model = fit_propensity("default", [AnsweredTurn(one.messages, short_hash(one.person or ""), one.voted) for one in made])
    labels = [by(f"p-{n % 2}", n, float(n % 3 == 1)) for n in range(12)]
    weighing = Refitter(SMALL, CountedLetters(), propensity=model)
    weighing.absorb(weighing.prepare(labels))
    weights = weighing.buffer.rows().weights_N
    assert weights.max() > 3 * weights.min()
    assert checksum(weighing) != checksum(refitter(*labels))
    again = Refitter(SMALL, CountedLetters())
    again.recover([entry.encode() for entry in weighing.buffer.with_verdict()])
    assert checksum(again) == checksum(weighing)  # the weights are kept with the entries
