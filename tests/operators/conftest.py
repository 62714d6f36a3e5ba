"""The last lines of ``make test-operators`` say how many of each kind passed."""

from collections import Counter

from _pytest.terminal import TerminalReporter

KINDS = {
    "test_every_expression_of_every_dashboard": "dashboard expressions answered by a real Prometheus",
    "test_an_alert_fires_when_it_should": "alert cases (fires, or stays silent) by promtool",
    "test_every_page_fits": "console pages by width and scheme in Chromium",
    "test_on_": "halves of the operator's guide, each command run in order on a real ring",
}


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    passed, other = Counter[str](), Counter[str]()
    for outcome, counts in (("passed", passed), ("failed", other), ("error", other)):
        for report in terminalreporter.stats.get(outcome, []):
            name = report.nodeid.rpartition("::")[2]
            kind = next((words for prefix, words in KINDS.items() if name.startswith(prefix)), "other checks of alerts, Prometheus and console")
            counts[kind] += 1
    terminalreporter.section("what operators see")
    for kind in [*KINDS.values(), "other checks of alerts, Prometheus and console"]:
        terminalreporter.write_line(f"{passed[kind]} of {passed[kind] + other[kind]} {kind}")
