"""The backbone tuned on labels: what it writes, what it leaves alone, and whom it asks whether it was worth it."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reward.features.backbone_tuning import TuningRecipe, tune
from reward.features.featurizer import Featurizer
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


def test_a_tuned_backbone_tells_labels_that_it_has_not_seen_better(tiny_base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    recipe = TuningRecipe(epochs=4, learning_rate=3e-3)
    tuned = tune(tiny_base / "dense", [label(n) for n in range(120)], SETTINGS, recipe, tmp_path / "a", said.append)
    assert (tuned.trained, tuned.held_out, len(said)) == (90, 30, 4)
    assert tuned.better, tuned


def test_it_writes_a_backbone_that_differs_where_it_was_tuned_and_comes_out_the_same_again(tiny_base: Path, tmp_path: Path) -> None:
    base, labels, recipe = tiny_base / "dense", [label(n) for n in range(48)], TuningRecipe(rank=2, epochs=1, learning_rate=1e-3, held_out=0.45)
    for name in ("a", "b"):
        tune(base, labels, SETTINGS, recipe, tmp_path / name, lambda _: None)
    first, again, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "a", tmp_path / "b", base))
    assert all(torch.equal(first[name], again[name]) for name in first)
    same = {name for name in first if torch.equal(first[name], before[f"model.{name}"].to(first[name].dtype))}
    assert "embed_tokens.weight" in same
    assert any("layers.0" in name for name in set(first) - same)
    assert not [name for name in set(first) - same if "layers.1" in name]  # the features do not run through it
    old, new = Featurizer(base, SETTINGS), Featurizer.for_part(tiny_base, SETTINGS.model_copy(update={"backbone": tmp_path / "a"}))
    assert new.fingerprint != old.fingerprint
    pair, (words, _), *_ = [(labels[0].messages, labels[0].answer)], *old.blocks
    assert torch.equal(new.features(pair)[:, :words], old.features(pair)[:, :words])
    assert not torch.equal(new.features(pair)[:, words:], old.features(pair)[:, words:])


def test_too_few_labels_and_a_folder_that_is_there_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too few"):
        tune(tiny_base / "dense", [label(n) for n in range(30)], SETTINGS, TuningRecipe(), tmp_path / "out", lambda _: None)
    alike = [label(n).model_copy(update={"verdict": 1.0}) for n in range(200)]
    with pytest.raises(ConfigError, match="too few"):
        tune(tiny_base / "dense", alike, SETTINGS, TuningRecipe(), tmp_path / "out", lambda _: None)
    with pytest.raises(ConfigError, match="exists already"):
        tune(tiny_base / "dense", [label(n) for n in range(200)], SETTINGS, TuningRecipe(), tmp_path, lambda _: None)
