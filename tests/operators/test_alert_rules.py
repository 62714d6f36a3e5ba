"""Prometheus' own promtool takes the rules, and each fires when it should and only then."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.alerts.alert_rules import ALERTS, scrape, write

UP = 'up{job="tidemill", part="%s", instance="i"}'
# Alert, input series, minutes until it is asked, whether it fires then.
CASES: list[tuple[str, dict[str, str], str, bool]] = [
    ("TidemillBrokerAway", {'tidemill_kafka_up{part="reward"}': "1 0x20"}, "10m", True),
    ("TidemillBrokerAway", {'tidemill_kafka_up{part="reward"}': "1x20"}, "10m", False),
    ("TidemillLearnerDead", {UP % "learner": "1 0x20"}, "10m", True),
    ("TidemillLearnerDead", {UP % "learner": "1 0 1x20"}, "10m", False),
    ("TidemillLearnerDead", {UP % "streams": "1 0x20"}, "10m", False),
    ("TidemillPartDead", {UP % "actor": "1 0x20"}, "10m", True),
    ("TidemillPartDead", {UP % "learner": "1 0x20"}, "10m", False),
    ("TidemillLearnerStuck", {"tidemill_learner_steps_total": "7x180", "tidemill_learner_waiting_seconds_total": "5x180"}, "120m", True),
    ("TidemillLearnerStuck", {"tidemill_learner_steps_total": "7x180", "tidemill_learner_waiting_seconds_total": "5+50x180"}, "120m", False),
    ("TidemillLearnerStuck", {"tidemill_learner_steps_total": "7+1x180", "tidemill_learner_waiting_seconds_total": "5x180"}, "120m", False),
    ("TidemillPolicyCollapsed", {"tidemill_learner_entropy_alarm": "0 1x30"}, "20m", True),
    ("TidemillPolicyCollapsed", {"tidemill_learner_entropy_alarm": "0 1x5 0x30"}, "20m", False),
    ("TidemillRewardModelDrifting", {"tidemill_reward_drift_alarm": "0 1x30"}, "20m", True),
    ("TidemillRewardModelDrifting", {"tidemill_reward_drift_alarm": "0 1x5 0x30"}, "20m", False),
    ("TidemillReplicaSkew", {'tidemill_serving_version{policy="p", instance="a"}': "3x30",
                             'tidemill_serving_version{policy="p", instance="b"}': "2x30"}, "20m", True),
    ("TidemillReplicaSkew", {'tidemill_serving_version{policy="p", instance="a"}': "3+1x30",
                             'tidemill_serving_version{policy="p", instance="b"}': "3+1x30"}, "20m", False),
    ("TidemillAdaptersRefused", {'tidemill_adapters_refused_total{reason="checksum"}': "1 1 2x20"}, "5m", True),
    ("TidemillAdaptersRefused", {'tidemill_adapters_refused_total{reason="checksum"}': "2x40"}, "35m", False),
    ("TidemillAdaptersRefused", {'tidemill_adapters_refused_total{reason="checksum"}': "_x20 1x40"}, "25m", True),
    ("TidemillAdaptersRefused", {'tidemill_adapters_refused_total{reason="checksum"}': "_x20 1x40"}, "50m", False),
    ("TidemillCanaryHarming", {'tidemill_promotions_total{move="rolled_back"}': "_x20 1x40"}, "25m", True),
    ("TidemillCanaryHarming", {'tidemill_promotions_total{move="rolled_back"}': "1x20 2x40"}, "25m", True),
    ("TidemillCanaryHarming", {'tidemill_promotions_total{move="rolled_back"}': "1x60"}, "40m", False),
    ("TidemillCanaryHarming", {'tidemill_promotions_total{move="canary"}': "_x20 1x40"}, "25m", False),
    ("TidemillDeadLettersRising", {'tidemill_dead_letters_total{topic="t", reason="invalid"}': "0+3x60",
                                   'tidemill_consumed_total{topic="t", part="join"}': "0+100x60"}, "30m", True),
    ("TidemillDeadLettersRising", {'tidemill_dead_letters_total{topic="t", reason="invalid"}': "0+3x60",
                                   'tidemill_consumed_total{topic="t", part="join"}': "0+1000x60"}, "30m", False),
    ("TidemillDeadLettersRising", {'tidemill_dead_letters_total{topic="t", reason="invalid"}': "0+3x60",
                                   'tidemill_consumed_total{topic="t", part="join"}': "0+100x60",
                                   'tidemill_consumed_total{topic="t", part="lake"}': "0+10000x60"}, "30m", True),
    ("TidemillOutboxFilling", {"tidemill_outbox_depth": "0+50x60"}, "20m", True),
    ("TidemillOutboxFilling", {"tidemill_outbox_depth": "3000-50x60"}, "20m", False),
    ("TidemillOutboxFilling", {"tidemill_outbox_depth": "0+1x60"}, "20m", False),
    ("TidemillOutboxLosing", {'tidemill_outbox_dropped_total{reason="full", instance="a"}': "_x20 1x40"}, "25m", True),
    ("TidemillOutboxLosing", {'tidemill_outbox_lost_total{instance="a"}': "0x19 7x40"}, "25m", True),
    ("TidemillOutboxLosing", {'tidemill_outbox_lost_total{instance="a"}': "0x60"}, "25m", False),
    ("TidemillOutboxLosing", {'tidemill_outbox_dropped_total{reason="full", instance="a"}': "5x60"}, "40m", False),
    ("TidemillLakeFailing", {"tidemill_lake_failures_total": "0+1x60"}, "20m", True),
    ("TidemillLakeFailing", {"tidemill_lake_failures_total": "0+1x5 5x60"}, "30m", False),
    ("TidemillStreamsBehind", {'tidemill_consumer_lag_records{topic="t", part="join"}': "0+200x60"}, "30m", True),
    ("TidemillStreamsBehind", {'tidemill_consumer_lag_records{topic="t", part="join"}': "90000-200x60"}, "30m", False),
]  # fmt: skip


def promtool(*words: object, folder: Path) -> None:
    done = subprocess.run(["promtool", *map(str, words)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules_and_the_scrape_configuration(tmp_path: Path) -> None:
    rules, config = write(tmp_path, {"streams": "127.0.0.1:9100", "actor": "127.0.0.1:8000"})
    promtool("check", "rules", rules.name, folder=tmp_path)
    promtool("check", "config", config.name, folder=tmp_path)
    assert scrape({})["rule_files"] == [rules.name]


@pytest.mark.parametrize(
    ("name", "series", "asked", "fires"), CASES, ids=lambda x: x if isinstance(x, str) else "" if isinstance(x, dict) else str(x)
)
def test_an_alert_fires_when_it_should_and_only_then(tmp_path: Path, name: str, series: dict[str, str], asked: str, fires: bool) -> None:
    write(tmp_path, {})
    count = f'count(ALERTS{{alertname="{name}", alertstate="firing"}})'
    sample: list[dict[str, Any]] = [{"labels": "{}", "value": 1}] if fires else []
    case = {
        "rule_files": ["tidemill-alerts.yml"],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [{"series": key, "values": values} for key, values in series.items()],
            "promql_expr_test": [{"expr": count, "eval_time": asked, "exp_samples": sample}],
        }],
    }  # fmt: skip
    (tmp_path / "test.yml").write_text(yaml.safe_dump(case))
    promtool("test", "rules", "test.yml", folder=tmp_path)


def test_every_alert_is_seen_to_fire_and_to_stay_silent() -> None:
    assert {name for name, _, _, fires in CASES if fires} == {alert.name for alert in ALERTS}
    assert {name for name, _, _, fires in CASES if not fires} == {alert.name for alert in ALERTS}
