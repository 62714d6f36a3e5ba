"""Prometheus alert rules, built from the metric table, and a matching scrape configuration. Each alert has a runbook in docs/runbooks."""

import re
from pathlib import Path
from typing import Any

import yaml

from dashboards.alerts.alert_table import ALERTS, JOB, Alert
from streams.core.metrics import BY_NAME

RUNBOOKS = "docs/runbooks"


def metric_names(expression: str) -> set[str]:
    """Names of Tidemill's metrics in a PromQL expression."""
    return {name.removesuffix("_bucket") for name in re.findall(r"\btidemill_\w+", expression)}


def rules(runbooks: str = RUNBOOKS) -> dict[str, Any]:
    """One group of rules in Prometheus' format. ``runbooks``: the URL or folder of the runbooks. Raises KeyError for a metric that is not in the
    table."""
    for alert in ALERTS:
        for name in metric_names(alert.expression):
            BY_NAME[name]
    return {"groups": [{"name": "tidemill", "rules": [_rule(alert, runbooks) for alert in ALERTS]}]}


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


def write(folder: Path, targets: dict[str, str], beside: dict[str, str] | None = None, runbooks: str = RUNBOOKS) -> list[Path]:
    """Write ``tidemill-alerts.yml`` and, if the parts' ports are known, ``prometheus.yml``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"tidemill-alerts.yml": rules(runbooks)} | ({"prometheus.yml": scrape(targets, beside)} if targets else {})
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False, width=150, allow_unicode=True))
    return [folder / name for name in files]


def _rule(alert: Alert, runbooks: str) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook_url": f"{runbooks.rstrip('/')}/{alert.page}"},
    }
