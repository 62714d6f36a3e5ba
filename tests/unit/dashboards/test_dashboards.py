"""Dashboards are made of the metric table alone, and pushing them twice changes nothing."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from dashboards.alerts.alert_table import ALERTS
from dashboards.grafana.grafana_panels import dashboards
from dashboards.grafana.grafana_push import push, write
from streams.core.errors import ConfigError, Unavailable
from streams.core.metrics import TABLE


class Grafana(BaseHTTPRequestHandler):
    """The part of Grafana's HTTP API that a push uses, as its documentation describes it. Not Grafana itself."""

    folders: list[dict[str, Any]]
    sources: list[dict[str, Any]]
    boards: dict[str, dict[str, Any]]
    changes: int

    def log_message(self, *_: object) -> None:
        return

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer good-token":
            return self._answer(401, {"message": "Invalid API key"})
        return self._answer(200, {"/api/folders": type(self).folders, "/api/datasources": type(self).sources}[self.path])

    def do_POST(self) -> None:
        kind, body = type(self), json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/folders":
            kind.folders.append(body)
        elif self.path == "/api/datasources":
            kind.sources.append({"id": 1, **body})
        elif self.path == "/api/dashboards/db":
            assert body["folderUid"] == "tidemill"
            assert body["overwrite"] is True
            kind.boards[body["dashboard"]["uid"]] = body["dashboard"]
        kind.changes += 1
        self._answer(200, {"status": "success"})


@pytest.fixture
def grafana() -> Iterator[tuple[str, type[Grafana]]]:
    kind = type("OneGrafana", (Grafana,), {"folders": [], "sources": [], "boards": {}, "changes": 0})
    server = HTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()
    server.server_close()


def test_every_metric_has_a_panel_and_no_panel_names_another() -> None:
    shown = set()
    for model in dashboards().values():
        for panel in model["panels"]:
            for target in panel.get("targets", ()):
                shown |= {re.sub(r"_bucket$", "", name) for name in re.findall(r"tidemill_\w+", target["expr"])}
    assert shown == {metric.name for metric in TABLE}
    for model in dashboards().values():
        assert {name for mark in model["annotations"]["list"] for name in re.findall(r"tidemill_\w+", mark["expr"])} == {"tidemill_promotions_total"}


def test_panels_do_not_overlap_and_ids_differ() -> None:
    for model in dashboards().values():
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in model["panels"]]
        assert len(set(places)) == len(places)
        assert len({panel["id"] for panel in model["panels"]}) == len(places)


def test_the_overview_asks_four_questions_and_links_every_runbook_once() -> None:
    model = dashboards("https://console.example/", "https://wiki.example/runbooks")["tidemill-ring"]
    rows = [panel["title"] for panel in model["panels"] if panel["type"] == "row"]
    assert rows == ["Are people served?", "Is feedback arriving?", "Is it learning?", "Is it safe?"]
    linked = [
        page for panel in model["panels"] if panel["type"] == "text" for page in re.findall(r"runbooks/([\w-]+\.md)", panel["options"]["content"])
    ]
    assert len(linked) == len(set(linked))
    assert set(linked) | {"lake-failing.md"} == {alert.page for alert in ALERTS}
    assert model["links"][0]["url"] == "https://console.example/"
    assert {variable["name"] for variable in model["templating"]["list"]} == {"datasource", "replica", "policy"}


def test_panels_of_the_overview_stand_below_their_question_and_say_from_when_on_it_is_bad() -> None:
    model = dashboards()["tidemill-ring"]
    places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in model["panels"]]
    assert places == sorted(places)
    for panel in model["panels"]:
        if panel["type"] != "timeseries":
            continue
        assert panel["description"].endswith(".")
        for step, after in zip(steps := panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", []), steps[1:], strict=False):
            assert step["value"] is None or step["value"] < after["value"], panel["title"]
    (disk,) = [panel for panel in model["panels"] if panel["title"] == "Disk that is free"]
    assert [(step["color"], step["value"]) for step in disk["fieldConfig"]["defaults"]["thresholds"]["steps"]] == [
        ("red", None),
        ("yellow", 0.1),
        ("green", 0.2),
    ]


def test_pushing_twice_leaves_one_folder_one_source_and_the_same_dashboards(grafana: tuple[str, type[Grafana]]) -> None:
    url, server = grafana
    uids = push(url, "good-token", "http://127.0.0.1:9090")
    first = (list(server.folders), list(server.sources), dict(server.boards))
    assert push(url, "good-token", "http://127.0.0.1:9090") == uids == list(dashboards())
    assert (server.folders, server.sources, server.boards) == first
    assert len(server.folders) == len(server.sources) == 1


def test_a_wrong_token_is_told_without_showing_it(grafana: tuple[str, type[Grafana]]) -> None:
    with pytest.raises(ConfigError, match="refused with 401") as told:
        push(grafana[0], "bad-token")
    assert "bad-token" not in str(told.value)


def test_a_grafana_that_is_away_or_misnamed_is_told() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        push("http://127.0.0.1:1", "good-token")
    with pytest.raises(ConfigError, match="write http://host:port"):
        push("localhost:3000", "good-token")


def test_written_files_hold_the_same(tmp_path: Any) -> None:
    assert {path.stem: json.loads(path.read_text()) for path in write(tmp_path)} == dashboards()
