"""Applies the hacking guards to live answers: the newest labelled answers of adapters against those of the base. In memory only."""

from collections import deque
from collections.abc import Sequence

from reward.trust.hacking_guards import GuardFinding, inspect
from streams.core.events import Label
from streams.core.metrics import Metrics

KEPT = 64


class LiveAnswers:
    """The newest ``KEPT`` distinct answers of adapters, and of the base."""

    def __init__(self) -> None:
        self._base: deque[tuple[str, str]] = deque(maxlen=KEPT)
        self._adapters: deque[tuple[str, str]] = deque(maxlen=KEPT)

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

    def findings(self) -> tuple[GuardFinding, ...]:
        """The guards' findings now; empty while there are too few answers on either side."""
        return inspect([answer for _, answer in self._adapters], [answer for _, answer in self._base])


def report(findings: Sequence[GuardFinding], metrics: Metrics) -> None:
    """Set each rule's value and verdict as metrics."""
    for finding in findings:
        report_rule(finding.rule, finding.value, finding.tripped, metrics)


def report_rule(rule: str, value: float, tripped: bool, metrics: Metrics) -> None:
    """Set the metrics of one rule."""
    metrics.set("tidemill_reward_guard_ratio", value, rule=rule)
    metrics.set("tidemill_reward_guard_tripped", float(tripped), rule=rule)
