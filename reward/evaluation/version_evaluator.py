"""What is known about the model on labels that it had not seen: calibration, by slice too, drift, divergence. Apart from the fit.

Test-then-train (prequential; Dawid 1984): each label's entry holds what the version published then said of it before any fit on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward.evaluation.calibration import brier_losses, calibration
from reward.evaluation.label_slices import by_slice
from reward.fit.buffer_entry import BufferEntry
from reward.trust.drift_alarm import Drift, rise_of_mean
from reward.trust.hacking_guards import GuardFinding, divergence
from streams.core.events import Calibration


@dataclass(frozen=True)
class Evaluation:
    """Figures on the newest labels that were predicted before they were known."""

    calibration: Calibration
    slices: dict[str, Calibration]
    drift: Drift
    divergence: GuardFinding | None

    @property
    def alarms(self) -> tuple[str, ...]:
        """What speaks against trusting the model, a sentence each."""
        found = [self.drift.sentence] if self.drift.alarm else []
        return (*found, *([str(self.divergence)] if self.divergence and self.divergence.tripped else []))


def evaluate(newest: Sequence[BufferEntry], newest_of_all: Sequence[BufferEntry]) -> Evaluation:
    """Evaluate on people's ``newest`` labels; slices also on hints (``newest_of_all``). Oldest first; entries without a prediction are skipped."""
    said_N, verdicts_N = predictions(newest)
    return Evaluation(
        calibration=calibration(said_N, verdicts_N),
        slices=by_slice([entry for entry in newest_of_all if entry.predicted is not None]),
        drift=rise_of_mean(brier_losses(said_N, verdicts_N).tolist()),
        divergence=divergence(said_N.tolist(), verdicts_N.tolist()),
    )


def predictions(entries: Sequence[BufferEntry]) -> tuple[Tensor, Tensor]:
    """What was said of these labels before any fit on them, and their verdicts; ``[N]`` each, in the same order."""
    predicted = [entry for entry in entries if entry.predicted is not None]
    return torch.tensor([e.predicted for e in predicted]), torch.tensor([e.verdict for e in predicted])
