"""What the learner is doing, or what is still needed before it starts, in one sentence: ``up``, ``status`` and the console say the same."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from infra.settings.config import Settings
from learner.runs.step_progress import PROGRESS_FILE, LearnerProgress, read_progress
from reward.fit.label_evidence import good_and_bad, lacking
from streams.core.events import Label, RewardModelVersion


class KnownLabels(Protocol):
    """Facts of a log: those of ``up`` and ``status``, or the console's."""

    @property
    def labels(self) -> Mapping[str, Label]:
        """By episode."""

    @property
    def reward_models(self) -> Sequence[RewardModelVersion]:
        """Oldest first."""


def learning_of(settings: Settings, facts: KnownLabels) -> str:
    """The sentence, now. The progress of a step is read from the run's folder, on the machine where the learner runs."""
    progress = read_progress(progress_file(settings))
    return learning_sentence(settings, list(facts.labels.values()), len(facts.reward_models), progress, datetime.now(UTC))


def progress_file(settings: Settings) -> Path:
    """Where the learner of a run says how far it is."""
    return settings.run_folder / "state" / "learner" / PROGRESS_FILE


def learning_sentence(settings: Settings, labels: Iterable[Label], reward_models: int, progress: LearnerProgress | None, now: datetime) -> str:
    """Needs first: a learner that waits is told what it waits for."""
    ours = [label for label in labels if label.policy == settings.policy.name]
    needs = lacking(*good_and_bad(ours), settings.reward) if reward_models == 0 else []
    if progress is not None and progress.prompts < progress.prompts_needed:
        needs.append(f"{progress.prompts} of {progress.prompts_needed} different questions")
    if needs:
        return f"needs more before it starts: {', '.join(needs)}"
    if progress is None:
        return "the learner is starting"
    return progress.sentence(now)
