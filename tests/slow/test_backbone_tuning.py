"""The backbone tuned on labels: what it learns, what it writes, what it leaves alone. Tuning takes seconds and rarely breaks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reward.features.backbone_tuning import TuningRecipe, tune
from reward.features.featurizer import Featurizer
from tests.support.processors import Claim
from tests.unit.reward.test_untunable_labels import SETTINGS, label


@pytest.mark.learning
@pytest.mark.usefixtures("torch_threads")
def test_a_tuned_backbone_tells_labels_that_it_has_not_seen_better(tiny_base: Path, tmp_path: Path, seed: int, claim: Claim) -> None:
    """Tried as in tests/unit/learner/test_learning_claims.py, each seed with labels of its own; a backbone is always tuned in float32."""
    said: list[str] = []
    recipe = TuningRecipe(epochs=4, learning_rate=3e-3, seed=seed)
    tuned = tune(tiny_base / "dense", [label(1000 * seed + n) for n in range(120)], SETTINGS, recipe, tmp_path / "a", said.append)
    assert (tuned.trained, tuned.held_out, len(said)) == (90, 30, 4)
    first, last = (float(line.split(": ")[1].split()[0]) for line in (said[0], said[-1]))
    claim("nats a label that tuning gains on what it sees", first - last, 0.1)
    claim("nats a label that tuning gains on what it has not seen", tuned.loss_before - tuned.loss_after, 0.0)
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
    old, new = Featurizer(base, SETTINGS), Featurizer(tmp_path / "a", SETTINGS)
    assert new.fingerprint != old.fingerprint
    pair, (words, _), *_ = [(labels[0].messages, labels[0].answer)], *old.blocks
    assert torch.equal(new.features(pair)[:, :words], old.features(pair)[:, :words])
    assert not torch.equal(new.features(pair)[:, words:], old.features(pair)[:, words:])
