"""How long the demo goes on: to its aim, or until the rise is shown, and never beyond the most."""

from dataclasses import dataclass

from infra.machine.step_prediction import IN_THE_RING

REPORT_S = 25.0
"""Kept back for settling the ledger, plotting, and stopping every process."""
START_S, STEPS_TO_SHOW = 150.0, 9.0
"""Until the first step begins; steps after which a rise was usually shown."""
NOT_LEARNING_S = START_S + 60.0
"""Of a run's time, what is not learning: start, exams, report."""


@dataclass(frozen=True)
class TimePlan:
    """All times in seconds of one clock that only moves on."""

    aim_s: float
    """When the run should be over: all of it is used."""
    at_most_s: float
    """When it is over whatever was shown."""
    predicted_step_s: float | None = None
    """What a step of the learner takes on this machine, alone; None where nobody predicts it."""

    def ends_s(self, shown: bool) -> float:
        """When the run is to be over."""
        return self.aim_s if shown else self.at_most_s

    def learned_enough(self, now_s: float, shown: bool, exam_s: float, step_s: float, just_published: bool) -> bool:
        """Whether what is left is needed for the exam and the report, or is too short for another adapter."""
        left_s = self.ends_s(shown) - now_s - exam_s - REPORT_S
        return left_s <= 0 or (just_published and left_s < step_s)

    def forecast(self, started_s: float) -> str:
        """What to say at the start."""
        aim, most = ((end_s - started_s) / 60 for end_s in (self.aim_s, self.at_most_s))
        told = f"this takes {aim:.0f} minutes, and longer (at most {most:.0f}) where the rise in approval is not shown by then"
        if self.predicted_step_s is None:
            return told
        likely = (START_S + STEPS_TO_SHOW * IN_THE_RING * self.predicted_step_s) / 60
        step = f"a step of the learner takes about {self.predicted_step_s:.0f} s here"
        if likely > most:
            return f"{told}; {step}, so that {most:.0f} minutes may be too short to show it (about {likely:.0f} would do; --at-most)"
        return f"{told}; {step}, so about {max(aim, likely):.0f} minutes in all"
