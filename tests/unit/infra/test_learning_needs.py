"""What is still needed before learning starts is derived from the settings, and said alike everywhere."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from infra.local.up import AGAIN_S, LearningLines
from infra.operate.learning_needs import learning_sentence
from infra.settings.config import load
from learner.runs.step_progress import LearnerProgress
from reward.fit.label_evidence import good_and_bad, lacking
from reward.settings import RewardSettings
from streams.core.events import Channel, Evidence, Label, Outcome

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = load("laptop", ("reward.min_labels=16", "reward.min_each_verdict=3"), {})


def label(number: int, verdict: float | None, policy: str = "default", evidence: tuple[Evidence, ...] | None = None) -> Label:
    return Label(episode_id=f"ep-{number}", policy=policy, outcome=Outcome.COMPLETED, messages=(), answer="", verdict=verdict, evidence=evidence,
                 episode_at=NOW, first_feedback_at=NOW, newest_feedback_at=NOW)  # fmt: skip


def labels(up: int, down: int) -> list[Label]:
    return [label(number, float(number < up)) for number in range(up + down)]


@pytest.mark.parametrize(("up", "down", "needs"), [
    (0, 0, ["0 of 16 labels", "0 of 3 thumbs up", "0 of 3 thumbs down"]),
    (7, 2, ["9 of 16 labels", "2 of 3 thumbs down"]),
    (14, 2, ["2 of 3 thumbs down"]),
    (13, 3, []),
])  # fmt: skip
def test_labels_are_counted_as_the_updater_counts_them(up: int, down: int, needs: Sequence[str]) -> None:
    assert lacking(*good_and_bad(labels(up, down)), RewardSettings()) == needs
    told = learning_sentence(SETTINGS, labels(up, down), 0, None, NOW)
    assert told == (f"needs more before it starts: {', '.join(needs)}" if needs else "the learner is starting")


def test_a_signal_counts_where_nobody_gave_a_thumb_and_other_policies_and_silence_never() -> None:
    hint = label(1, None, evidence=(Evidence(channel=Channel.IMPLICIT, value=0.2, weight=0.3),))
    assert good_and_bad([hint, label(2, None), label(3, 1.0)]) == (1, 1)
    assert "1 of 16 labels" in learning_sentence(SETTINGS, [label(1, 1.0), label(2, 1.0, policy="other")], 0, None, NOW)


def test_questions_are_needed_too_and_once_there_is_enough_the_step_speaks() -> None:
    waits = LearnerProgress(step=1, phase="waiting", prompts=5, prompts_needed=8, at=NOW)
    assert learning_sentence(SETTINGS, labels(14, 2), 0, waits, NOW) == "needs more before it starts: 2 of 3 thumbs down, 5 of 8 different questions"
    assert learning_sentence(SETTINGS, [], 1, waits, NOW) == "needs more before it starts: 5 of 8 different questions"
    ready = waits.model_copy(update={"prompts": 8})
    assert learning_sentence(SETTINGS, [], 1, ready, NOW) == "waits before step 1"
    steps = LearnerProgress(step=1, phase="rollout", done_tokens=3, all_tokens=9, at=NOW)
    assert learning_sentence(SETTINGS, labels(1, 0), 1, steps, NOW) == "step 1: rollout, 3 of 9 tokens"


def test_up_says_other_needs_and_phases_at_once_and_the_same_phase_now_and_then() -> None:
    now = [0.0]
    lines = LearningLines(lambda: now[0])
    said = [lines.worth_saying(sentence) for sentence in (
        "needs more before it starts: 1 of 16 labels", "needs more before it starts: 1 of 16 labels", "needs more before it starts: 2 of 16 labels",
        "waits before step 1", "step 1: rollout, 1 of 9 tokens", "step 1: rollout, 2 of 9 tokens", "step 1: train, 0 of 9 tokens",
    )]  # fmt: skip
    assert [sentence is not None for sentence in said] == [True, False, True, False, True, False, True]
    now[0] = AGAIN_S
    assert lines.worth_saying("step 1: train, 5 of 9 tokens") == "step 1: train, 5 of 9 tokens"
