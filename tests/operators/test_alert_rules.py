"""Prometheus' own promtool takes the rules, and each fires when it should and only then."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.alerts.alert_rules import scrape, write
from dashboards.alerts.alert_table import ALERTS

UP = 'up{job="tidemill", part="%s", instance="i"}'
STEPS = {"tidemill_learner_steps_total{instance=\"i\"}": "0x180", "tidemill_learner_waiting_seconds_total{instance=\"i\"}": "5x180",
         'tidemill_start_time_seconds{part="learner", instance="i"}': "0x180", 'tidemill_learner_phase{phase="train", instance="i"}': "1x180",
         'tidemill_learner_phase{phase="waiting", instance="i"}': "0x180"}  # fmt: skip
"""A learner in a step since it was started at time 0."""
WAITS = {'tidemill_learner_phase{phase="train", instance="i"}': "0x180", 'tidemill_learner_phase{phase="waiting", instance="i"}': "1x180"}
ANSWERS = 'tidemill_answer_seconds_bucket{le="%s"}'
RAN = 'tidemill_start_time_seconds{part="%s", instance="i"}'
READ = 'tidemill_consumed_total{topic="tidemill.%s.v1", part="join"}'
FAILED, WELL = (f'tidemill_episodes_captured_total{{outcome="{outcome}"}}' for outcome in ("failed", "completed"))
LABELS, PUBLISHED, MADE = (
    "tidemill_reward_labels_seen_total",
    'tidemill_reward_versions_total{result="published"}',
    "tidemill_adapters_published_total",
)
HEALTHY = {
    **{UP % part: "1x180" for part in ("streams", "reward", "learner", "actor", "promoter")},
    **{RAN % part: "0x180" for part in ("streams", "reward", "learner", "actor", "promoter")},
    **{f'tidemill_kafka_up{{part="{part}"}}': "1x180" for part in ("streams", "reward", "learner", "promoter")},
    **{f'tidemill_disk_free_ratio{{part="{part}"}}': "0.4x180" for part in ("streams", "actor")},
    **{ANSWERS % le: "0+12x180" for le in ("10", "60", "120", "+Inf")},
    WELL: "0+12x180", FAILED: "0x100 1x80", 'tidemill_capture_skipped_total{reason="declined"}': "0+1x180",
    READ % "episodes": "0+12x180", READ % "feedback": "0+8x180", 'tidemill_consumer_lag_records{topic="t", part="join"}': "0 5 0 9 2x176",
    'tidemill_ledger_missing_records{topic="tidemill.episodes.v1"}': "0x180", "tidemill_erasure_open_seconds": "0x60 60 120 0x118",
    "tidemill_outbox_depth": "0 3 0 1x177", 'tidemill_dead_letters_total{topic="t", reason="expired"}': "0x90 1x90",
    LABELS: "0+8x180", PUBLISHED: "0+1x180", "tidemill_reward_drift_alarm": "0x180", 'tidemill_reward_guard_tripped{rule="length"}': "0x180",
    'tidemill_learner_steps_total{instance="i"}': "0x20 0+1x160", 'tidemill_learner_waiting_seconds_total{instance="i"}': "0+60x20 1200x160",
    'tidemill_learner_phase{phase="waiting", instance="i"}': "1x20 0x160", 'tidemill_learner_phase{phase="train", instance="i"}': "0x20 1x160",
    "tidemill_learner_entropy_alarm": "0x180", MADE: "0x20 0+1x160", 'tidemill_serving_version{policy="default", instance="i"}': "0x22 0+1x158",
    "tidemill_promotion_trials_total": "0x180",
}  # fmt: skip
"""A ring in its first three hours: it waits for labels, then makes an adapter a minute."""
# Alert, input series, minutes until it is asked, whether it fires then.
CASES: list[tuple[str, dict[str, str], str, bool]] = [
    ("TidemillActorDown", {UP % "actor": "1 0x20"}, "10m", True),
    ("TidemillActorDown", {UP % "streams": "1x20"}, "10m", True),  # absent
    ("TidemillActorDown", {UP % "actor": "1 0x20", UP.replace('"i"', '"j"') % "actor": "1x20"}, "10m", False),  # another answers
    ("TidemillActorErroring", {FAILED: "0+1x60", WELL: "0+10x60"}, "30m", True),
    ("TidemillActorErroring", {FAILED: "0+1x60", WELL: "0+100x60"}, "30m", False),
    ("TidemillActorErroring", {WELL: "0+100x60"}, "30m", False),
    ("TidemillActorSlow", {ANSWERS % "60": "0+9x60", ANSWERS % "120": "0+10x60", ANSWERS % "+Inf": "0+10x60"}, "30m", True),
    ("TidemillActorSlow", {ANSWERS % "60": "0+10x60", ANSWERS % "120": "0+10x60", ANSWERS % "+Inf": "0+10x60"}, "30m", False),
    ("TidemillActorSlow", {ANSWERS % "60": "5x60", ANSWERS % "120": "9x60", ANSWERS % "+Inf": "9x60"}, "30m", False),  # nobody asks
    ("TidemillRestartLoop", {RAN % "reward": "0 0 200 200 400 400 600 600 800x20"}, "12m", True),
    ("TidemillRestartLoop", {RAN % "reward": "0 0 200 200 400x20"}, "12m", False),
    ("TidemillDiskFull", {'tidemill_disk_free_ratio{part="streams"}': "0.2 0.09x20"}, "15m", True),
    ("TidemillDiskFull", {'tidemill_disk_free_ratio{part="streams"}': "0.2 0.11x20"}, "15m", False),
    ("TidemillNoFeedback", {READ % "feedback": "7x900", READ % "episodes": "0+1x900", RAN % "streams": "0x900"}, "14h", True),
    ("TidemillNoFeedback", {READ % "feedback": "7x900", READ % "episodes": "0+1x900", RAN % "streams": "0x900"}, "10h", False),
    ("TidemillNoFeedback", {READ % "feedback": "7x600 8x300", READ % "episodes": "0+1x900", RAN % "streams": "0x900"}, "14h", False),
    ("TidemillNoFeedback", {READ % "feedback": "7x900", READ % "episodes": "9x900", RAN % "streams": "0x900"}, "14h", False),  # nobody asks
    ("TidemillCaptureSkipping", {'tidemill_capture_skipped_total{reason="outbox_full"}': "_x20 1x40"}, "25m", True),
    ("TidemillCaptureSkipping", {'tidemill_capture_skipped_total{reason="declined"}': "0+5x40"}, "25m", False),
    ("TidemillCaptureSkipping", {'tidemill_capture_skipped_total{reason="outbox_full"}': "3x60"}, "40m", False),
    ("TidemillLedgerUnbalanced", {'tidemill_ledger_missing_records{topic="t"}': "0 0 2x20"}, "5m", True),
    ("TidemillLedgerUnbalanced", {'tidemill_ledger_missing_records{topic="t"}': "0x20"}, "5m", False),
    ("TidemillErasureOverdue", {"tidemill_erasure_open_seconds": "86000+60x60"}, "30m", True),
    ("TidemillErasureOverdue", {"tidemill_erasure_open_seconds": "60+60x5 0x60"}, "30m", False),
    ("TidemillNoRewardModel", {LABELS: "0+1x900", PUBLISHED: "4x900", RAN % "reward": "0x900"}, "14h", True),
    ("TidemillNoRewardModel", {LABELS: "0+1x900", RAN % "reward": "0x900"}, "14h", True),  # not one so far
    ("TidemillNoRewardModel", {LABELS: "0+1x900", PUBLISHED: "4x600 5x300", RAN % "reward": "0x900"}, "14h", False),
    ("TidemillNoRewardModel", {LABELS: "50x900", PUBLISHED: "4x900", RAN % "reward": "0x900"}, "14h", False),
    ("TidemillLearnerStarved", {"tidemill_learner_waiting_seconds_total": "0+60x600", READ % "episodes": "0+1x600"}, "8h", True),
    ("TidemillLearnerStarved", {"tidemill_learner_waiting_seconds_total": "0+60x600", READ % "episodes": "50x600"}, "8h", False),
    ("TidemillLearnerStarved", {"tidemill_learner_waiting_seconds_total": "0+30x600", READ % "episodes": "0+1x600"}, "8h", False),
    ("TidemillNoAdapter", {MADE: "3x900", "tidemill_learner_steps_total": "0+1x900", RAN % "learner": "0x900"}, "14h", True),
    ("TidemillNoAdapter", {MADE: "3x600 4x300", "tidemill_learner_steps_total": "0+1x900", RAN % "learner": "0x900"}, "14h", False),
    ("TidemillNoAdapter", {MADE: "3x900", "tidemill_learner_steps_total": "7x900", RAN % "learner": "0x900"}, "14h", False),  # it waits
    ("TidemillNightMissed", {MADE: "0+1x1800", "tidemill_promotion_trials_total": "2x1800", RAN % "promoter": "0x1800"}, "28h", True),
    ("TidemillNightMissed", {MADE: "0+1x1800", "tidemill_promotion_trials_total": "2x900 3x900", RAN % "promoter": "0x1800"}, "28h", False),
    ("TidemillNightMissed", {MADE: "0+1x1800"}, "28h", False),  # newest mode: there is no promoter
    ("TidemillGuardTripped", {'tidemill_reward_guard_tripped{rule="length"}': "0 1x40"}, "30m", True),
    ("TidemillGuardTripped", {'tidemill_reward_guard_tripped{rule="length"}': "0 1x5 0x40"}, "30m", False),
    ("TidemillBrokerAway", {'tidemill_kafka_up{part="reward"}': "1 0x20"}, "10m", True),
    ("TidemillBrokerAway", {'tidemill_kafka_up{part="reward"}': "1x20"}, "10m", False),
    ("TidemillLearnerDead", {UP % "learner": "1 0x20"}, "10m", True),
    ("TidemillLearnerDead", {UP % "learner": "1 0 1x20"}, "10m", False),
    ("TidemillLearnerDead", {UP % "streams": "1 0x20"}, "10m", False),
    ("TidemillPartDead", {UP % "actor": "1 0x20"}, "10m", True),
    ("TidemillPartDead", {UP % "learner": "1 0x20"}, "10m", False),
    ("TidemillLearnerStuck", STEPS | {"tidemill_learner_steps_total{instance=\"i\"}": "7x180"}, "120m", True),
    ("TidemillLearnerStuck", STEPS | {"tidemill_learner_steps_total{instance=\"i\"}": "7+1x180"}, "120m", False),
    ("TidemillLearnerStuck", STEPS | {"tidemill_learner_waiting_seconds_total{instance=\"i\"}": "5+50x180"}, "120m", False),
    ("TidemillLearnerStuck", STEPS | WAITS, "120m", False),  # for its first labels
    ("TidemillLearnerStuck", {"tidemill_learner_steps_total{instance=\"i\"}": "_x100 0x80",  # 20 minutes old, of which it waited 410 s
                              "tidemill_learner_waiting_seconds_total{instance=\"i\"}": "_x100 0+60x6 410x80",
                              'tidemill_start_time_seconds{part="learner", instance="i"}': "_x100 6000x80"}, "120m", False),
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


@pytest.mark.parametrize("asked", ["5m", "30m", "1h", "2h", "3h"])
def test_a_healthy_ring_fires_nothing_at_any_age(tmp_path: Path, asked: str) -> None:
    write(tmp_path, {})
    case = {
        "rule_files": ["tidemill-alerts.yml"],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [{"series": key, "values": values} for key, values in HEALTHY.items()],
            "promql_expr_test": [{"expr": 'ALERTS{alertstate="firing"}', "eval_time": asked, "exp_samples": []}],
        }],
    }  # fmt: skip
    (tmp_path / "test.yml").write_text(yaml.safe_dump(case))
    promtool("test", "rules", "test.yml", folder=tmp_path)
