"""Prometheus rules, built from the metric table, and a scrape configuration that fits them. Each alert has its page in docs/runbooks."""

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
    """One rule: ``expression`` has held for ``lasting`` (Prometheus' duration)."""

    name: str
    expression: str
    lasting: str
    severity: str
    """``page``: a person should look now; ``ticket``: within the day."""
    summary: str

    @property
    def page(self) -> str:
        """The file name of its runbook."""
        return f"{re.sub(r'(?<!^)(?=[A-Z])', '-', self.name.removeprefix('Tidemill')).lower()}.md"


def _risen(counter: str) -> str:
    """How much a rare counter rose within a quarter of an hour; all of it where the series is younger, for ``increase`` misses the first event."""
    return f"increase({counter}[15m]) > 0 or ({counter} unless {counter} offset 15m)"


ALERTS: tuple[Alert, ...] = (
    Alert("TidemillBrokerAway", "tidemill_kafka_up == 0", "1m", "page", "Kafka does not answer {{ $labels.part }}."),
    Alert("TidemillLearnerDead", f'up{{job="{JOB}", part="learner"}} == 0', "2m", "page", "The learner does not answer."),
    Alert(
        "TidemillLearnerStuck",
        "increase(tidemill_learner_steps_total[1h]) == 0 and increase(tidemill_learner_waiting_seconds_total[1h]) < 60",
        "5m", "ticket", "The learner answers, but has neither stepped nor waited for an hour.",
    ),
    Alert("TidemillPolicyCollapsed", "tidemill_learner_entropy_alarm == 1", "10m", "ticket", "The policy says the same whatever is asked."),
    Alert("TidemillPartDead", f'up{{job="{JOB}", part!="learner"}} == 0', "2m", "page", "{{ $labels.part }} at {{ $labels.instance }} does not answer."),
    Alert("TidemillRewardModelDrifting", "tidemill_reward_drift_alarm == 1", "10m", "ticket", "The reward model errs more and more on unseen labels."),
    Alert(
        "TidemillReplicaSkew",
        "max by (policy) (tidemill_serving_version) - min by (policy) (tidemill_serving_version) > 0",
        "15m", "ticket", "Replicas of {{ $labels.policy }} serve versions {{ $value }} apart.",
    ),
    Alert(
        "TidemillAdaptersRefused",
        "sum by (reason) (" + _risen("tidemill_adapters_refused_total") + ") > 0",
        "0m", "ticket", "A replica refused an adapter: {{ $labels.reason }}.",
    ),
    Alert(
        "TidemillCanaryHarming",
        "sum by (move) (" + _risen('tidemill_promotions_total{move="rolled_back"}') + ") > 0",
        "0m", "page", "The promoter took an adapter out of traffic: people like it less than what it was to replace.",
    ),
    Alert(
        "TidemillDeadLettersRising",
        'sum by (topic) (increase(tidemill_dead_letters_total[15m])) > 0.01 * sum by (topic) (increase(tidemill_consumed_total{part!="lake"}[15m])) + 1',
        "5m", "ticket", "More than one record in a hundred of {{ $labels.topic }} is set aside.",
    ),
    Alert(
        "TidemillOutboxFilling",
        "min_over_time(tidemill_outbox_depth[5m]) > 100 and deriv(tidemill_outbox_depth[5m]) > 0",
        "5m", "page", "{{ $value }} events wait to be sent to Kafka, and it grows.",
    ),
    Alert(
        "TidemillOutboxLosing",
        "sum by (instance) (" + _risen("tidemill_outbox_dropped_total") + ") > 0 or sum by (instance) (" + _risen("tidemill_outbox_lost_total") + ") > 0",
        "0m", "page", "The actor at {{ $labels.instance }} dropped events, or a kill took them.",
    ),
    Alert("TidemillLakeFailing", "increase(tidemill_lake_failures_total[10m]) > 0", "5m", "ticket", "The lake cannot be written."),
    Alert(
        "TidemillStreamsBehind",
        "min_over_time(tidemill_consumer_lag_records[10m]) > 1000 and deriv(tidemill_consumer_lag_records[10m]) > 0",
        "10m", "ticket", "{{ $labels.part }} is {{ $value }} records behind on {{ $labels.topic }}, and falls further behind.",
    ),
)  # fmt: skip


def metric_names(expression: str) -> set[str]:
    """Names of our metrics in a PromQL expression."""
    return set(re.findall(r"\btidemill_\w+", expression))


def rules() -> dict[str, Any]:
    """One group of rules, as Prometheus reads it. A name that the table does not have is a KeyError."""
    for alert in ALERTS:
        for name in metric_names(alert.expression):
            BY_NAME[name]
    return {"groups": [{"name": "tidemill", "rules": [_rule(alert) for alert in ALERTS]}]}


def scrape(targets: dict[str, str], beside: dict[str, str] | None = None) -> dict[str, Any]:
    """A Prometheus configuration for one ring: ``host:port`` of ``/metrics`` by part, and ``beside`` them of others by job, such as Ray.

    vLLM's and Faust's own metrics come with those of the actor and the reward updater.
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
    """``tidemill-alerts.yml``, and ``prometheus.yml`` beside it where the parts' ports are known."""
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
