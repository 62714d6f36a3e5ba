"""One sentence for ``up``, ``status`` and the console: what the learner is doing, or what is still missing before it starts."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from infra.settings.config import Settings
from learner.runs.step_progress import PROGRESS_FILE, LearnerProgress, read_progress
from reward.fit.label_evidence import good_and_bad, lacking
from streams.core.events import Label, RewardModelVersion


class KnownLabels(Protocol):
    """The part of the log's facts that is needed here. ``LogFacts`` and ``ConsoleFacts`` both have it."""

    @property
    def labels(self) -> Mapping[str, Label]:
        """By episode."""

    @property
    def reward_models(self) -> Sequence[RewardModelVersion]:
        """Oldest first."""


def learning_of(settings: Settings, facts: KnownLabels) -> str:
    """The sentence. Progress of a step comes from a file in the run folder, so only on the learner's machine."""
    progress = read_progress(progress_file(settings))
    return learning_sentence(settings, list(facts.labels.values()), len(facts.reward_models), progress, datetime.now(UTC))


def progress_file(settings: Settings) -> Path:
    """The file to which the learner writes its progress."""
    return settings.run_folder / "state" / "learner" / PROGRESS_FILE


def learning_sentence(settings: Settings, labels: Iterable[Label], reward_models: int, progress: LearnerProgress | None, now: datetime) -> str:
    """What is missing, if anything; otherwise the learner's progress."""
    ours = [label for label in labels if label.policy == settings.policy.name]
    needs = lacking(*good_and_bad(ours), settings.reward) if reward_models == 0 else []
    if progress is not None and progress.prompts < progress.prompts_needed:
        needs.append(f"{progress.prompts} of {progress.prompts_needed} different questions")
    if needs:
        return f"needs more before it starts: {', '.join(needs)}"
    if progress is None:
        return "the learner is starting"
    return progress.sentence(now)
