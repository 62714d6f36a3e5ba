"""When the demo stops: at ``--minutes`` if the rise is shown by then; else when it is shown, and at ``--at-most`` at the latest."""

from dataclasses import dataclass

from infra.machine.step_prediction import IN_THE_RING

REPORT_S = 25.0
"""Time reserved for the ledger, plots, and stopping all processes."""
START_S, STEPS_TO_SHOW = 150.0, 9.0
"""Seconds until the first step begins; number of steps after which a rise was usually shown."""
NOT_LEARNING_S = START_S + 60.0
"""Time of a run without learning: start, held-out questions, report."""


@dataclass(frozen=True)
class TimePlan:
    """All times are in seconds of one monotonic clock."""

    aim_s: float
    """When the run should end if the rise is shown."""
    at_most_s: float
    """When it ends in any case."""
    predicted_step_s: float | None = None
    """Predicted seconds of a training step on this machine when idle. None: not predicted."""

    def ends_s(self, shown: bool) -> float:
        """When the run ends."""
        return self.aim_s if shown else self.at_most_s

    def learned_enough(self, now_s: float, shown: bool, exam_s: float, step_s: float, just_published: bool) -> bool:
        """True when the time left is needed for the held-out questions and the report, or is too short for another adapter."""
        left_s = self.ends_s(shown) - now_s - exam_s - REPORT_S
        return left_s <= 0 or (just_published and left_s < step_s)

    def forecast(self, started_s: float) -> str:
        """The sentence about the duration at the start."""
        aim, most = ((end_s - started_s) / 60 for end_s in (self.aim_s, self.at_most_s))
        told = f"this takes {aim:.0f} minutes, and longer (at most {most:.0f}) where the rise in approval is not shown by then"
        if self.predicted_step_s is None:
            return told
        likely = (START_S + STEPS_TO_SHOW * IN_THE_RING * self.predicted_step_s) / 60
        step = f"a step of the learner takes about {self.predicted_step_s:.0f} s here"
        if likely > most:
            return f"{told}; {step}, so that {most:.0f} minutes may be too short to show it (about {likely:.0f} would do; --at-most)"
        return f"{told}; {step}, so about {max(aim, likely):.0f} minutes in all"
