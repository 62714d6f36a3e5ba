"""Tunes the backbone itself with LoRA on people's verdicts (``tidemill reward tune``), and writes it to a folder for ``reward.backbone``.

Low-rank updates (Hu et al. 2021, arXiv:2106.09685) of the linear layers that the features use are trained together with a linear head on the two
states that the features read, by binary cross-entropy, and merged. The head is trained first and alone, so that a random head does not distort the
features (Kumar et al. 2022, arXiv:2202.10054). The newest labels are held out to judge the result: heads are fitted on the other labels, once with
the old features and once with the new.

Shapes: ``N`` labels, ``T`` tokens, ``H`` hidden size.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoTokenizer

from reward.evaluation.calibration import calibration, log_loss
from reward.features.featurizer import Features, Featurizer, load_model, load_trunk
from reward.fit.label_entries import is_unreadable
from reward.settings import RewardSettings
from reward.updater.refitter import Refitter
from streams.core.errors import ConfigError
from streams.core.events import Label

HEAD_STEPS = 200
HEAD_RATE = 1e-2
HEAD_DECAY = 1e-1
SMALLEST = 1e-6
FEWEST = 20
"""Fewest labels to train on, and fewest to hold out."""


@dataclass(frozen=True)
class TuningRecipe:
    """Hyperparameters of the tuning."""

    rank: int = 8
    epochs: int = 2
    learning_rate: float = 1e-4
    batch: int = 8
    held_out: float = 0.25
    """Share of the labels that is held out: the newest."""
    seed: int = 0


@dataclass(frozen=True)
class Tuned:
    """The result, measured on labels that neither backbone nor heads have seen."""

    trained: int
    held_out: int
    loss_before: float
    """Mean log loss in nats of heads on the old features."""
    loss_after: float
    accuracy_before: float
    accuracy_after: float

    @property
    def better(self) -> bool:
        """True when the new features have the lower log loss."""
        return self.loss_after < self.loss_before

    def __str__(self) -> str:
        return (
            f"{self.trained} labels trained on, the newest {self.held_out} held out: log loss {self.loss_before:.3f} -> {self.loss_after:.3f} nats, "
            f"accuracy {self.accuracy_before:.1%} -> {self.accuracy_after:.1%}"
        )


def tune(backbone: Path, labels: Sequence[Label], settings: RewardSettings, recipe: TuningRecipe, out: Path, tell: Callable[[str], None]) -> Tuned:
    """Tune the backbone on labels with a verdict and write it to ``out``, which must not exist. Raises ConfigError when there are too few labels.

    ``out`` is written whether or not it is better: see ``Tuned.better``.
    """
    if settings.backbone_kind != "language_model":
        raise ConfigError(f"reward.backbone_kind = {settings.backbone_kind}: only a language_model can be tuned")
    if out.exists():
        raise ConfigError(f"{out} exists already: name a new folder")
    known = sorted(
        (label for label in labels if label.verdict is not None and not is_unreadable(label)),
        key=lambda label: (label.newest_feedback_at, label.episode_id),
    )
    held = math.ceil(len(known) * recipe.held_out)
    train, test = known[: len(known) - held], known[len(known) - held :]
    for part in (train, test):
        if len(part) < FEWEST or len({(label.verdict or 0) > 0.5 for label in part}) < 2:
            raise ConfigError(
                f"{len(known)} labels with a verdict are too few: tuning needs {FEWEST} to train on and {FEWEST} to hold out, good and bad in both"
            )
    old = Featurizer(backbone, settings)
    _write(_trained(backbone, old, train, settings, recipe, tell), backbone, out)
    (out / "tuned.json").write_text(json.dumps({"from": old.fingerprint, "labels": len(train), "recipe": asdict(recipe)}, indent=1) + "\n")
    (loss_before, right_before), (loss_after, right_after) = (
        _evaluate(features, train, test, settings) for features in (old, Featurizer(out, settings))
    )
    return Tuned(len(train), len(test), loss_before, loss_after, right_before, right_after)


def _trained(
    backbone: Path, old: Featurizer, labels: Sequence[Label], settings: RewardSettings, recipe: TuningRecipe, tell: Callable[[str], None]
) -> Any:
    """The layers of the backbone that the features use, tuned and merged."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        trunk = load_trunk(backbone, settings, "float32")[0].train()
        model = get_peft_model(trunk, LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules="all-linear"))
        tokens = [old.tokens(label.prompt, label.whole_answer) for label in labels]
        verdicts_N = torch.tensor([label.verdict or 0.0 for label in labels], device=settings.device)

        def states(n: int) -> Tensor:
            prompt_ids, answer_ids = tokens[n]
            input_T = torch.tensor([[*prompt_ids, *answer_ids]], device=settings.device)
            layers = model(input_ids=input_T, output_hidden_states=True, use_cache=False).hidden_states
            return torch.cat(old.two_states(layers, len(prompt_ids)))

        with torch.no_grad():
            first_NH = torch.stack([states(n) for n in range(len(labels))])
        centre_H, scale_H = first_NH.mean(0), first_NH.std(0) + SMALLEST
        head = torch.nn.Linear(first_NH.shape[1], 1).to(settings.device)
        _fit_head(head, (first_NH - centre_H) / scale_H, verdicts_N)
        adapter = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW([*adapter, *head.parameters()], lr=recipe.learning_rate)
        for epoch in range(recipe.epochs):
            losses = []
            for batch in torch.randperm(len(labels)).split(recipe.batch):
                for n in batch.tolist():
                    loss = binary_cross_entropy_with_logits(head((states(n) - centre_H) / scale_H)[0], verdicts_N[n])
                    (loss / len(batch)).backward()
                    losses.append(loss.item())
                torch.nn.utils.clip_grad_norm_(adapter, 1.0)
                optimizer.step()
                optimizer.zero_grad()
            tell(f"epoch {epoch + 1} of {recipe.epochs}: {sum(losses) / len(losses):.3f} nats a label")
        return model.merge_and_unload()


def _fit_head(head: torch.nn.Linear, features_NH: Tensor, verdicts_N: Tensor) -> None:
    """Fit the head alone, on fixed features."""
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=HEAD_RATE, weight_decay=HEAD_DECAY)
    for _ in range(HEAD_STEPS):
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(head(features_NH)[:, 0], verdicts_N).backward()
        optimizer.step()


def _write(trunk: Any, backbone: Path, out: Path) -> None:
    """Write the whole backbone with the tuned layers; the layers above them are unchanged."""
    whole = load_model(backbone)
    if unknown := whole.load_state_dict(trunk.state_dict(), strict=False).unexpected_keys:
        raise ConfigError(f"{backbone} has no place for the tuned weights {unknown[:3]}: this kind of model cannot be tuned")
    whole.save_pretrained(str(out))
    AutoTokenizer.from_pretrained(str(backbone), local_files_only=True).save_pretrained(str(out))


def _evaluate(features: Features, train: Sequence[Label], test: Sequence[Label], settings: RewardSettings) -> tuple[float, float]:
    """Log loss and accuracy on ``test`` of a model fitted on ``train``."""
    refitter = Refitter(settings, features)
    refitter.absorb(refitter.prepare(train))
    chances_N = refitter.fitted().score(features.features([(label.prompt, label.whole_answer) for label in test])).mean_N
    verdicts_N = torch.tensor([label.verdict or 0.0 for label in test])
    return float(log_loss(chances_N, verdicts_N).mean()), calibration(chances_N, verdicts_N).accuracy
