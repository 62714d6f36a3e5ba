"""Applies the hacking guards to live answers: the newest labelled answers of adapters against those of the base.

The answers are in memory only. What was measured on the base's goes with each version: once adapters serve all traffic, an updater that starts again
would see no answer of the base any more, and without them the guards are silent.
"""

from collections import deque
from collections.abc import Mapping, Sequence

from reward.trust.hacking_guards import GuardFinding, compare, measures
from streams.core.events import Label
from streams.core.metrics import Metrics

KEPT = 64


class LiveAnswers:
    """The newest ``KEPT`` distinct answers of adapters, and of the base."""

    def __init__(self) -> None:
        self._base: deque[tuple[str, str]] = deque(maxlen=KEPT)
        self._adapters: deque[tuple[str, str]] = deque(maxlen=KEPT)
        self._recalled: dict[str, float] = {}

    def add(self, labels: Sequence[Label]) -> None:
        """Add the labels' answers. An episode that is labelled again counts once."""
        for label in labels:
            side = self._adapters if label.adapter else self._base
            if all(episode_id != label.episode_id for episode_id, _ in side):
                side.append((label.episode_id, label.answer))

    def remove(self, episode_ids: Sequence[str]) -> None:
        """Remove the answers of these episodes."""
        for side in (self._base, self._adapters):
            kept = [each for each in side if each[0] not in episode_ids]
            side.clear()
            side.extend(kept)

    def recall(self, base_measures: Mapping[str, float]) -> None:
        """What an earlier updater measured on the base: it counts until enough answers of the base have come."""
        self._recalled = dict(base_measures)

    def base_measures(self) -> dict[str, float]:
        """What is usual for the base, by rule; empty while nobody knows."""
        return measures([answer for _, answer in self._base]) or self._recalled

    def findings(self) -> tuple[GuardFinding, ...]:
        """The guards' findings now; empty while there are too few answers of adapters, or nothing is known of the base's."""
        return compare(measures([answer for _, answer in self._adapters]), self.base_measures())


def report(findings: Sequence[GuardFinding], metrics: Metrics) -> None:
    """Set each rule's value and verdict as metrics."""
    for finding in findings:
        report_rule(finding.rule, finding.value, finding.tripped, metrics)


def report_rule(rule: str, value: float, tripped: bool, metrics: Metrics) -> None:
    """Set the metrics of one rule."""
    metrics.set("tidemill_reward_guard_ratio", value, rule=rule)
    metrics.set("tidemill_reward_guard_tripped", float(tripped), rule=rule)
