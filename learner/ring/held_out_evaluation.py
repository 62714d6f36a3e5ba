"""Evaluates the policy on held-out prompts between two steps."""

import structlog

from learner.distributed.ray_cluster import LearnerActor
from learner.ring.learner_inputs import LogFeed
from learner.settings import LearnerSettings

log = structlog.get_logger()


class HeldOutEvaluation:
    """Every ``evaluate_every`` steps, and before the first, one answer to each held-out prompt."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        self._last_step: int | None = None
        self._figures: dict[str, float] = {}

    def before_step(self, actor: LearnerActor, feed: LogFeed, steps: int) -> dict[str, float]:
        """Figures of the policy after so many steps, by the current reward model. Empty where no evaluation is due, or no prompt is held out."""
        if self._settings.evaluate_every == 0 or steps % self._settings.evaluate_every:
            return {}
        if self._last_step != steps:  # a step may be tried again
            held_out = list(feed.prompts.held_out(self._settings.evaluation_prompts))
            self._figures = actor.call("evaluate", held_out, feed.reward_folder)
            self._last_step = steps
            told = {name: round(value, 4) for name, value in self._figures.items()}
            log.info("evaluation", step=steps, reward_model=feed.reward_model.version, **told)
        return {"evaluated_step": float(steps), **self._figures} if self._figures else {}
