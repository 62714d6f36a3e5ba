"""A step says how far it is: phases in order, tokens that add up, and a time left that is the pace's own."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from learner.ring.progress_watch import TURN_S, ProgressWatch
from learner.runs.step_progress import FIRST_GUESS, OLD_S, PROGRESS_FILE, LearnerProgress, StepTeller, read_progress
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.health import Health
from streams.core.part_context import PartContext
from streams.kafka import KafkaSettings

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class ClockOfTests:
    """Moved by hand, in seconds."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def a_step(teller: StepTeller, clock: ClockOfTests, number: int, rollout_s: float, score_s: float, train_s: float) -> None:
    """Half of each phase's tokens at half of its time."""
    for phase, seconds in (("rollout", rollout_s), ("score", score_s), ("train", train_s)):
        teller.begin(number, phase, 100)  # type: ignore[arg-type]
        clock.now_s += seconds / 2
        teller.done(50)
        clock.now_s += seconds / 2
    teller.end()


def test_the_time_left_is_by_the_pace_of_the_phase_in_hand_and_what_the_others_took_last_time() -> None:
    clock, told = ClockOfTests(), list[LearnerProgress]()
    teller = StepTeller(told.append, clock)
    a_step(teller, clock, 1, 20, 4, 40)
    found = {(one.phase, one.done_tokens): one.left_s for one in told}
    whole = sum(FIRST_GUESS.values())
    assert found["rollout", 0] is None, "before the first token nobody knows"
    assert found["rollout", 50] == pytest.approx(20 * whole - 10), "a first step is guessed from its rollouts"
    assert found["score", 0] == pytest.approx(20 * (FIRST_GUESS["score"] + FIRST_GUESS["train"]))
    assert found["train", 50] == pytest.approx(20)
    told.clear()
    clock.now_s += 1000.0  # the loop waited for people
    a_step(teller, clock, 2, 30, 4, 40)
    found = {(one.phase, one.done_tokens): one.left_s for one in told}
    assert found["rollout", 0] == pytest.approx(20 + 4 + 40), "as long as last time"
    assert found["rollout", 50] == pytest.approx(15 + 4 + 40)
    assert found["train", 50] == pytest.approx(20)


def test_the_count_may_change_and_is_told_no_more_than_once_a_second() -> None:
    clock, told = ClockOfTests(), list[LearnerProgress]()
    teller = StepTeller(told.append, clock)
    teller.begin(1, "rollout", 800)
    for tokens in range(1, 105):
        clock.now_s += 0.125
        teller.done(tokens, 400)
    assert [(one.done_tokens, one.all_tokens) for one in told] == [(0, 800), *((8 * second, 400) for second in range(1, 14))]


def test_a_progress_is_a_sentence_and_one_that_is_old_says_so() -> None:
    one = LearnerProgress(step=3, phase="train", done_tokens=1204, all_tokens=3100, left_s=40.4, at=NOW)
    assert one.sentence(NOW) == "step 3: train, 1,204 of 3,100 tokens, about 40 s left"
    assert one.sentence(NOW + timedelta(seconds=30)) == "step 3: train, 1,204 of 3,100 tokens, about 10 s left"
    assert one.sentence(NOW + timedelta(seconds=OLD_S + 60)) == "step 3: train, 1,204 of 3,100 tokens; nothing new for 4 min"
    assert one.model_copy(update={"left_s": None}).sentence(NOW) == "step 3: train, 1,204 of 3,100 tokens"


def test_a_file_that_is_no_progress_is_none(tmp_path: Path) -> None:
    path = tmp_path / PROGRESS_FILE
    assert read_progress(path) is None
    path.write_text("{")
    assert read_progress(path) is None
    one = LearnerProgress(step=1, phase="score", at=NOW)
    one.write(path)
    assert read_progress(path) == one


def test_what_the_process_tells_goes_to_metrics_and_keeps_the_loop_alive(tmp_path: Path) -> None:
    clock = ClockOfTests()
    health = Health(clock)
    context = PartContext(KafkaSettings(), ArtifactStore(str(tmp_path)), "default", tmp_path, tmp_path, health=health)
    path = tmp_path / PROGRESS_FILE
    LearnerProgress(step=9, phase="train", at=NOW).write(path)  # of a run before this one
    watch = ProgressWatch(context, prompts_needed=8)
    assert read_progress(path) is None
    watch.waits(1, prompts=5)
    told = read_progress(path)
    assert told is not None
    assert (told.phase, told.prompts, told.prompts_needed) == ("waiting", 5, 8)
    health.heartbeat("learning", TURN_S)
    LearnerProgress(step=1, phase="rollout", done_tokens=10, all_tokens=40, left_s=7.0, at=NOW).write(path)
    clock.now_s = TURN_S - 1
    watch.look()
    clock.now_s = TURN_S + 1
    watch.look()  # nothing new
    assert health.hanging() == []
    clock.now_s = 2 * TURN_S
    assert health.hanging() == ["learning"], "the same words again are no progress"
    metrics = context.metrics
    assert {phase: metrics.value("tidemill_learner_phase", phase=phase) for phase in ("waiting", "rollout", "train")} == {
        "waiting": 0, "rollout": 1, "train": 0,
    }  # fmt: skip
    assert metrics.value("tidemill_learner_phase_tokens", what="done") == 10
    assert metrics.value("tidemill_learner_phase_tokens", what="all") == 40
    assert metrics.value("tidemill_learner_step_left_seconds") == 7.0
