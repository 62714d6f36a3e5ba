"""Prometheus alert rules, built from the metric table, and a matching scrape configuration. Each alert has a runbook in docs/runbooks."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from streams.core.metrics import BY_NAME

JOB = "tidemill"
PARTS = ("streams", "reward", "learner", "actor")


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


ALERTS: tuple[Alert, ...] = (
    Alert("TidemillBrokerAway", "tidemill_kafka_up == 0", "1m", "page", "Kafka does not answer {{ $labels.part }}."),
    Alert("TidemillLearnerDead", f'up{{job="{JOB}", part="learner"}} == 0', "2m", "page", "The learner does not answer."),
    Alert(
        "TidemillLearnerStuck",
        "increase(tidemill_learner_steps_total[1h]) == 0 and increase(tidemill_learner_waiting_seconds_total[1h]) < 60",
        "5m", "ticket", "The learner runs, but has neither finished a step nor waited for input for an hour.",
    ),
    Alert("TidemillPolicyCollapsed", "tidemill_learner_entropy_alarm == 1", "10m", "ticket", "The policy has collapsed: it gives nearly the same answer to everything."),
    Alert("TidemillPartDead", f'up{{job="{JOB}", part!="learner"}} == 0', "2m", "page", "{{ $labels.part }} at {{ $labels.instance }} does not answer."),
    Alert("TidemillRewardModelDrifting", "tidemill_reward_drift_alarm == 1", "10m", "ticket", "The reward model's loss on unseen labels has risen."),
    Alert(
        "TidemillReplicaSkew",
        "max by (policy) (tidemill_serving_version) - min by (policy) (tidemill_serving_version) > 0",
        "15m", "ticket", "Replicas of {{ $labels.policy }} have served versions {{ $value }} apart for 15 minutes.",
    ),
    Alert(
        "TidemillAdaptersRefused",
        "sum by (reason) (" + _risen("tidemill_adapters_refused_total") + ") > 0",
        "0m", "ticket", "A replica refused an adapter: {{ $labels.reason }}.",
    ),
    Alert(
        "TidemillCanaryHarming",
        "sum by (move) (" + _risen('tidemill_promotions_total{move="rolled_back"}') + ") > 0",
        "0m", "page", "The promoter rolled an adapter back: people liked its answers less than those of the adapter before it.",
    ),
    Alert(
        "TidemillDeadLettersRising",
        'sum by (topic) (increase(tidemill_dead_letters_total[15m])) > 0.01 * sum by (topic) (increase(tidemill_consumed_total{part!="lake"}[15m])) + 1',
        "5m", "ticket", "More than 1 % of the records of {{ $labels.topic }} go to the dead letters.",
    ),
    Alert(
        "TidemillOutboxFilling",
        "min_over_time(tidemill_outbox_depth[5m]) > 100 and deriv(tidemill_outbox_depth[5m]) > 0",
        "5m", "page", "{{ $value }} events wait to be sent to Kafka, and their number grows.",
    ),
    Alert(
        "TidemillOutboxLosing",
        "sum by (instance) (" + _risen("tidemill_outbox_dropped_total") + ") > 0 or sum by (instance) (" + _risen("tidemill_outbox_lost_total") + ") > 0",
        "0m", "page", "The actor at {{ $labels.instance }} dropped events or lost them in a kill.",
    ),
    Alert("TidemillLakeFailing", "increase(tidemill_lake_failures_total[10m]) > 0", "5m", "ticket", "The lake cannot be written."),
    Alert(
        "TidemillStreamsBehind",
        "min_over_time(tidemill_consumer_lag_records[10m]) > 1000 and deriv(tidemill_consumer_lag_records[10m]) > 0",
        "10m", "ticket", "{{ $labels.part }} is {{ $value }} records behind on {{ $labels.topic }}, and the lag grows.",
    ),
)  # fmt: skip


def metric_names(expression: str) -> set[str]:
    """Names of Tidemill's metrics in a PromQL expression."""
    return set(re.findall(r"\btidemill_\w+", expression))


def rules() -> dict[str, Any]:
    """One group of rules in Prometheus' format. Raises KeyError for a metric that is not in the table."""
    for alert in ALERTS:
        for name in metric_names(alert.expression):
            BY_NAME[name]
    return {"groups": [{"name": "tidemill", "rules": [_rule(alert) for alert in ALERTS]}]}


def scrape(targets: dict[str, str], beside: dict[str, str] | None = None) -> dict[str, Any]:
    """A Prometheus configuration for one ring. ``targets``: ``host:port`` of ``/metrics`` by part. ``beside``: other targets by job, such as Ray.

    The actor and the reward updater also serve the metrics of vLLM and Faust.
    """
    return {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": ["tidemill-alerts.yml"],
        "scrape_configs": [
            {"job_name": JOB, "static_configs": [{"targets": [address], "labels": {"part": part}} for part, address in targets.items()],
             "honor_labels": True},
            *({"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in (beside or {}).items()),
        ],
    }  # fmt: skip


def write(folder: Path, targets: dict[str, str], beside: dict[str, str] | None = None) -> list[Path]:
    """Write ``tidemill-alerts.yml`` and, if the parts' ports are known, ``prometheus.yml``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"tidemill-alerts.yml": rules()} | ({"prometheus.yml": scrape(targets, beside)} if targets else {})
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False, width=150, allow_unicode=True))
    return [folder / name for name in files]


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": f"docs/runbooks/{alert.page}"},
    }
