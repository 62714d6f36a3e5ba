"""Labels that a backbone cannot be tuned on. What tuning does with the others: tests/slow/test_backbone_tuning.py."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reward.features.backbone_tuning import TuningRecipe, tune
from reward.settings import RewardSettings
from streams.core.errors import ConfigError
from streams.core.events import FeedbackKind, Label, Message, Outcome, Vote

SETTINGS = RewardSettings(dtype="float32", heads=4, folds=3)
START = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = ("tea", "water", "bread", "salt", "sugar", "rice", "milk", "oil")


def label(number: int) -> Label:
    """Good when the first word comes before the last in ``WORDS``: told by their order, which no bag of words knows."""
    first, last = random.Random(number).sample(range(len(WORDS)), 2)
    at, verdict = START + timedelta(minutes=number), float(first < last)
    return Label(
        episode_id=f"ep-{number}",
        policy="default",
        outcome=Outcome.COMPLETED,
        messages=(Message(role="user", content="What comes first?"),),
        answer=f"{WORDS[first]} then {WORDS[last]}",
        verdict=verdict,
        votes=(Vote(feedback_id=f"fb-{number}", user_id=f"p{number % 9}", kind=FeedbackKind.THUMB, value=verdict, at=at),),
        episode_at=at,
        first_feedback_at=at,
        newest_feedback_at=at,
    )


def test_too_few_labels_and_a_folder_that_is_there_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too few"):
        tune(tiny_base / "dense", [label(n) for n in range(30)], SETTINGS, TuningRecipe(), tmp_path / "out", lambda _: None)
    alike = [label(n).model_copy(update={"verdict": 1.0}) for n in range(200)]
    with pytest.raises(ConfigError, match="too few"):
        tune(tiny_base / "dense", alike, SETTINGS, TuningRecipe(), tmp_path / "out", lambda _: None)
    with pytest.raises(ConfigError, match="exists already"):
        tune(tiny_base / "dense", [label(n) for n in range(200)], SETTINGS, TuningRecipe(), tmp_path, lambda _: None)
