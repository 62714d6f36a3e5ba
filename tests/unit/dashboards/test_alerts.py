"""Alerts name metrics that exist, and each has a page that says what to do."""

import re
from pathlib import Path

import pytest
import yaml

from dashboards.alerts.alert_rules import metric_names, rules, write
from dashboards.alerts.alert_table import ALERTS, Alert
from infra.settings.config import Settings, load
from infra.settings.part_addresses import metrics_targets, ray_metrics_port
from streams.core.metrics import BY_NAME

RUNBOOKS = Path(__file__).parents[3] / "docs" / "runbooks"
PAGES = sorted(path.name for path in RUNBOOKS.glob("*.md"))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_names_metrics_that_exist_and_has_its_page(alert: Alert) -> None:
    assert metric_names(alert.expression) <= set(BY_NAME)
    assert metric_names(alert.expression) or "up{" in alert.expression, "`up` is Prometheus' own"
    headings = re.findall(r"^##? (.*)", (RUNBOOKS / alert.page).read_text(), re.M)
    assert headings == [alert.name, "What it means", "What to look at", "What to do"]


def test_every_runbook_belongs_to_an_alert_and_names_metrics_that_exist() -> None:
    assert sorted(alert.page for alert in ALERTS) == PAGES
    for page in PAGES:
        assert metric_names((RUNBOOKS / page).read_text()) <= set(BY_NAME), page


def test_the_labels_that_a_summary_shows_are_left_by_its_expression() -> None:
    for alert in ALERTS:
        shown = set(re.findall(r"\$labels\.(\w+)", alert.summary))
        kept = {"part", "instance", "job"} | {label for name in metric_names(alert.expression) for label in BY_NAME[name].labels}
        if grouped := re.search(r"by \((\w+)\)", alert.expression):
            kept = {grouped[1]}
        assert shown <= kept, alert.name


def test_written_files_are_what_prometheus_reads(tmp_path: Path) -> None:
    settings = load(None, ("metrics_port=9100", "actor.port=8000"), {})
    written = write(tmp_path, metrics_targets(settings), {"ray": f"127.0.0.1:{ray_metrics_port(settings)}"})
    assert [path.name for path in written] == ["tidemill-alerts.yml", "prometheus.yml"]
    assert yaml.safe_load(written[0].read_text()) == rules()
    scraped, ray = yaml.safe_load(written[1].read_text())["scrape_configs"]
    assert (ray["job_name"], ray["static_configs"]) == ("ray", [{"targets": ["127.0.0.1:9106"]}])
    told = {target["labels"]["part"]: target["targets"] for target in scraped["static_configs"]}
    assert told == {"streams": ["127.0.0.1:9100"], "reward": ["127.0.0.1:9101"], "learner": ["127.0.0.1:9102"], "actor": ["127.0.0.1:8000"]}


def test_without_known_ports_only_the_rules_are_written(tmp_path: Path) -> None:
    assert [path.name for path in write(tmp_path, metrics_targets(Settings()))] == ["tidemill-alerts.yml"]


def test_every_rule_links_its_runbook_where_the_operator_publishes_them() -> None:
    (group,) = rules("https://wiki.example/runbooks/")["groups"]
    links = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in group["rules"]}
    assert links["TidemillLearnerStuck"] == "https://wiki.example/runbooks/learner-stuck.md"
    assert len(links) == len(ALERTS)


def test_only_what_somebody_must_do_at_night_wakes_somebody_up() -> None:
    assert {alert.name for alert in ALERTS if alert.severity == "page"} == {
        "TidemillActorDown", "TidemillActorErroring", "TidemillPartDead", "TidemillRestartLoop", "TidemillBrokerAway", "TidemillDiskFull",
        "TidemillOutboxFilling", "TidemillOutboxLosing", "TidemillLedgerUnbalanced",
    }  # fmt: skip


def test_a_runbook_that_tells_to_roll_back_says_what_holds_in_newest_mode() -> None:
    """Replicas ignore promotions there, and it is the default."""
    for page in PAGES:
        text = (RUNBOOKS / page).read_text()
        if "rollback" in text or "roll back" in text.lower():
            assert "gated" in text, page
