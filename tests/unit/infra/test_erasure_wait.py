"""``tidemill erase`` waits for what is on its way, says what that is, and no longer."""

from datetime import UTC, datetime, timedelta

from infra.operate.erasure_certificate import Certificate
from infra.operate.erasure_wait import PATIENCE_S, ErasureWait
from learner.runs.step_progress import LearnerProgress

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLACES = ("join (partition 0)", "lake (files)", "learner (prompts)")


class Parts:
    """Parts that report at these seconds, and a learner in the middle of a step until ``step_until_s``; the clock moves as it is waited."""

    def __init__(self, *reports_at_s: float, step_until_s: float = 0.0) -> None:
        self.now_s, self.said = 0.0, list[str]()
        self._reports_at_s, self._step_until_s = dict(zip(PLACES, reports_at_s, strict=True)), step_until_s
        self.wait = ErasureWait(self._certificate, self._progress, self.said.append, lambda: self.now_s, self._pause, self._now)

    def _pause(self, seconds: float) -> None:
        self.now_s += seconds

    def _now(self) -> datetime:
        return NOW + timedelta(seconds=self.now_s)

    def _certificate(self) -> Certificate:
        done = {place: {"records": 1} for place, at_s in self._reports_at_s.items() if at_s <= self.now_s}
        return Certificate("p", "now", done, waiting=tuple(f"{place} has not reported: does it run?" for place in PLACES if place not in done))

    def _progress(self) -> LearnerProgress:
        left_s = self._step_until_s - self.now_s
        return LearnerProgress(
            step=7, phase="train" if left_s > 0 else "waiting", done_tokens=100, all_tokens=900, left_s=max(0.0, left_s), at=self._now()
        )


NEVER = float("inf")


def test_it_ends_when_all_have_reported_and_says_who_has() -> None:
    parts = Parts(1, 2, 3)
    assert parts.wait.until_complete(None).complete
    assert parts.now_s == 3
    assert [line for line in parts.said if line.startswith("reported")] == [f"reported: {place}" for place in PLACES[:2]], (
        "the certificate tells the last"
    )


def test_a_learner_in_the_middle_of_a_step_is_waited_for_and_its_progress_is_told() -> None:
    parts = Parts(1, 2, 600, step_until_s=598)
    assert parts.wait.until_complete(None).complete
    assert any("the learner answers at the end of step 7: train, 100 of 900 tokens, about" in line for line in parts.said)
    assert len(parts.said) < 100, "a word every quarter of a minute, not twice a second"


def test_a_part_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    parts = Parts(1, NEVER, 3)
    found = parts.wait.until_complete(None)
    assert found.waiting == ("lake (files) has not reported: does it run?",)
    assert PATIENCE_S <= parts.now_s <= 3 + PATIENCE_S + 1
    assert parts.wait.step(found) is None, "it is not the learner's step that is waited for"


def test_a_wait_that_was_given_is_kept_also_when_a_learner_is_busy() -> None:
    parts = Parts(1, 2, 600, step_until_s=598)
    found = parts.wait.until_complete(10)
    assert (found.complete, 10 <= parts.now_s <= 11) == (False, True)
    step = parts.wait.step(found)
    assert step is not None, "so that the command can say when it answers"
    assert step.left_s is not None
