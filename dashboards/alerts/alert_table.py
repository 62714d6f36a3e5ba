"""The alerts as data. Severity says what a person must do: ``page`` wakes somebody up, ``ticket`` waits for the day.

A condition over hours holds only for a process that has run for so long: a counter that has just begun shows nothing of the hours before.
"""

import re
from dataclasses import dataclass

JOB = "tidemill"
FEEDBACK, EPISODES = "tidemill.feedback.v1", "tidemill.episodes.v1"


@dataclass(frozen=True)
class Alert:
    """One rule: it fires when ``expression`` has been true for ``lasting`` (a Prometheus duration)."""

    name: str
    expression: str
    lasting: str
    severity: str
    """``page``: somebody must look now. ``ticket``: within the day."""
    summary: str

    @property
    def page(self) -> str:
        """The file name of its runbook."""
        return f"{re.sub(r'(?<!^)(?=[A-Z])', '-', self.name.removeprefix('Tidemill')).lower()}.md"


def _risen(counter: str) -> str:
    """Rise of a rare counter within 15 minutes. For a younger series its whole value, since ``increase`` misses the first event."""
    return f"increase({counter}[15m]) > 0 or ({counter} unless {counter} offset 15m)"


def _ran_for(part: str, hours: float) -> str:
    """True when some process of this part has run for so long."""
    return f'on () (time() - min(tidemill_start_time_seconds{{part="{part}"}}) > {hours * 3600:.0f})'


def _consumed(topic: str, span: str) -> str:
    """Records of a topic that the join read."""
    return f'sum(increase(tidemill_consumed_total{{topic="{topic}", part="join"}}[{span}]))'


ALERTS: tuple[Alert, ...] = (
    # Are people served?
    Alert(
        "TidemillActorDown",
        f'sum(up{{job="{JOB}", part="actor"}}) == 0 or absent(up{{job="{JOB}", part="actor"}})',
        "1m", "page", "No actor answers: nobody is served.",
    ),
    Alert(
        "TidemillActorErroring",
        'sum(rate(tidemill_episodes_captured_total{outcome="failed"}[10m])) > 0.05 * sum(rate(tidemill_episodes_captured_total[10m]))',
        "5m", "page", "More than 5 % of the answers fail.",
    ),
    Alert(
        "TidemillActorSlow",
        "histogram_quantile(0.95, sum by (le) (rate(tidemill_answer_seconds_bucket[10m]))) > 60",
        "10m", "ticket", "One answer in twenty takes {{ $value | humanizeDuration }} or more.",
    ),
    Alert(
        "TidemillPartDead", f'up{{job="{JOB}", part!="learner"}} == 0',
        "2m", "page", "{{ $labels.part }} at {{ $labels.instance }} does not answer.",
    ),
    Alert(
        "TidemillRestartLoop",
        "changes(tidemill_start_time_seconds[30m]) > 3",
        "0m", "page", "{{ $labels.part }} was started {{ $value }} times within half an hour.",
    ),
    Alert("TidemillBrokerAway", "tidemill_kafka_up == 0", "1m", "page", "Kafka does not answer {{ $labels.part }}."),
    Alert(
        "TidemillDiskFull", "tidemill_disk_free_ratio < 0.1",
        "5m", "page", "The disk of {{ $labels.part }} has {{ $value | humanizePercentage }} left.",
    ),
    # Is feedback arriving?
    Alert(
        "TidemillNoFeedback",
        f"{_consumed(FEEDBACK, '12h')} == 0 and {_consumed(EPISODES, '12h')} > 20 and {_ran_for('streams', 12)}",
        "5m", "ticket", "For 12 hours people got answers, and no feedback arrived.",
    ),
    Alert(
        "TidemillCaptureSkipping",
        "sum by (reason) (" + _risen('tidemill_capture_skipped_total{reason!~"declined|refused|gone_before_start|beam_search"}') + ") > 0",
        "0m", "ticket", "Answers are not recorded: {{ $labels.reason }}.",
    ),
    Alert(
        "TidemillOutboxFilling",
        "min_over_time(tidemill_outbox_depth[5m]) > 100 and deriv(tidemill_outbox_depth[5m]) > 0",
        "5m", "page", "{{ $value }} events wait to be sent to Kafka, and their number grows.",
    ),
    Alert(
        "TidemillOutboxLosing",
        f"sum by (instance) ({_risen('tidemill_outbox_dropped_total')}) > 0 or sum by (instance) ({_risen('tidemill_outbox_lost_total')}) > 0",
        "0m", "page", "The actor at {{ $labels.instance }} dropped events or lost them in a kill.",
    ),
    Alert(
        "TidemillLedgerUnbalanced", "max by (topic) (tidemill_ledger_missing_records) > 0",
        "0m", "page", "{{ $value }} records of {{ $labels.topic }} are missing.",
    ),
    Alert(
        "TidemillDeadLettersRising",
        "sum by (topic) (increase(tidemill_dead_letters_total[15m]))"
        ' > 0.01 * sum by (topic) (increase(tidemill_consumed_total{part!="lake"}[15m])) + 1',
        "5m", "ticket", "More than 1 % of the records of {{ $labels.topic }} go to the dead letters.",
    ),
    Alert(
        "TidemillStreamsBehind",
        "min_over_time(tidemill_consumer_lag_records[10m]) > 1000 and deriv(tidemill_consumer_lag_records[10m]) > 0",
        "10m", "ticket", "{{ $labels.part }} is {{ $value }} records behind on {{ $labels.topic }}, and the lag grows.",
    ),
    Alert("TidemillLakeFailing", "increase(tidemill_lake_failures_total[10m]) > 0", "5m", "ticket", "The lake cannot be written."),
    Alert(
        "TidemillErasureOverdue",
        "max(tidemill_erasure_open_seconds) > 86400",
        "0m", "ticket", "A person asked to be erased {{ $value | humanizeDuration }} ago, and a part has not reported.",
    ),
    # Is it learning?
    Alert(
        "TidemillNoRewardModel",
        "sum(increase(tidemill_reward_labels_seen_total[12h])) > 100"
        ' and (sum(increase(tidemill_reward_versions_total{result="published"}[12h])) or vector(0)) == 0'
        f" and {_ran_for('reward', 12)}",
        "5m", "ticket", "For 12 hours labels arrived, and no reward model was published.",
    ),
    Alert("TidemillLearnerDead", f'up{{job="{JOB}", part="learner"}} == 0', "2m", "ticket", "The learner does not answer."),
    Alert(
        "TidemillLearnerStuck",
        'increase(tidemill_learner_steps_total[1h]) == 0 and increase(tidemill_learner_waiting_seconds_total[1h]) < 60'
        ' and on (instance) (time() - tidemill_start_time_seconds{part="learner"} > 3600)'
        ' unless on (instance) tidemill_learner_phase{phase="waiting"} == 1',
        "5m", "ticket", "The learner runs, but has neither finished a step nor waited for input for an hour.",
    ),
    Alert(
        "TidemillLearnerStarved",
        f"increase(tidemill_learner_waiting_seconds_total[6h]) > 0.9 * 21600 and on () {_consumed(EPISODES, '6h')} > 100",
        "5m", "ticket", "The learner waited for nearly all of 6 hours, although people got answers.",
    ),
    Alert(
        "TidemillNoAdapter",
        "sum(increase(tidemill_adapters_published_total[12h])) == 0 and sum(increase(tidemill_learner_steps_total[12h])) > 0"
        f" and {_ran_for('learner', 12)}",
        "5m", "ticket", "For 12 hours the learner took steps, and no adapter was published.",
    ),
    Alert(
        "TidemillNightMissed",
        "sum(increase(tidemill_promotion_trials_total[26h])) == 0 and sum(increase(tidemill_adapters_published_total[26h])) > 0"
        f" and {_ran_for('promoter', 26)}",
        "0m", "ticket", "For 26 hours adapters were published, and none was put on trial.",
    ),
    Alert(
        "TidemillAdaptersRefused",
        "sum by (reason) (" + _risen("tidemill_adapters_refused_total") + ") > 0",
        "0m", "ticket", "A replica refused an adapter: {{ $labels.reason }}.",
    ),
    # Is it safe?
    Alert(
        "TidemillReplicaSkew",
        "max by (policy) (tidemill_serving_version) - min by (policy) (tidemill_serving_version) > 0",
        "15m", "ticket", "Replicas of {{ $labels.policy }} have served versions {{ $value }} apart for 15 minutes.",
    ),
    Alert(
        "TidemillCanaryHarming",
        "sum by (move) (" + _risen('tidemill_promotions_total{move="rolled_back"}') + ") > 0",
        "0m", "ticket", "The promoter rolled an adapter back: people liked its answers less than those of the adapter before it.",
    ),
    Alert(
        "TidemillGuardTripped", "max by (rule) (tidemill_reward_guard_tripped) == 1",
        "15m", "ticket", "Answers show signs of reward hacking: {{ $labels.rule }}.",
    ),
    Alert(
        "TidemillPolicyCollapsed", "tidemill_learner_entropy_alarm == 1",
        "10m", "ticket", "The policy has collapsed: it gives nearly the same answer to everything.",
    ),
    Alert("TidemillRewardModelDrifting", "tidemill_reward_drift_alarm == 1", "10m", "ticket", "The reward model's loss on unseen labels has risen."),
)  # fmt: skip
