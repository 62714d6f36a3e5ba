"""Live answers under the guards: the newest labelled answers of adapters beside those of the base. In memory; after a restart it fills again."""

from collections import deque
from collections.abc import Sequence

from reward.trust.hacking_guards import GuardFinding, inspect
from streams.core.events import Label
from streams.core.metrics import Metrics

KEPT = 64


class AnswersWatch:
    """Keeps the newest ``KEPT`` distinct answers of either side."""

    def __init__(self) -> None:
        self._base: deque[tuple[str, str]] = deque(maxlen=KEPT)
        self._adapters: deque[tuple[str, str]] = deque(maxlen=KEPT)

    def see(self, labels: Sequence[Label]) -> None:
        """Take labels in; an episode that is labelled again is the same answer."""
        for label in labels:
            side = self._adapters if label.adapter else self._base
            if all(episode_id != label.episode_id for episode_id, _ in side):
                side.append((label.episode_id, label.answer))

    def forget(self, episode_ids: Sequence[str]) -> None:
        """These episodes' answers are nobody's to look at any more."""
        for side in (self._base, self._adapters):
            kept = [each for each in side if each[0] not in episode_ids]
            side.clear()
            side.extend(kept)

    def findings(self) -> tuple[GuardFinding, ...]:
        """What the rules say now; nothing while there are too few answers on either side."""
        return inspect([answer for _, answer in self._adapters], [answer for _, answer in self._base])


def tell(findings: Sequence[GuardFinding], metrics: Metrics) -> None:
    """Each rule's figure and verdict as metrics."""
    for finding in findings:
        tell_rule(finding.rule, finding.value, finding.tripped, metrics)


def tell_rule(rule: str, value: float, tripped: bool, metrics: Metrics) -> None:
    """The same of one rule."""
    metrics.set("tidemill_reward_guard_ratio", value, rule=rule)
    metrics.set("tidemill_reward_guard_tripped", float(tripped), rule=rule)
