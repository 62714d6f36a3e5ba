"""A real Prometheus, configured as ``tidemill dashboards alerts`` does it, but scraping every second and with alerts that need not last."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dashboards.alerts.alert_rules import write
from infra.local.embedded_broker import free_port

SOON = {"for": "1s"}


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for it, and say for what it was waited in vain."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.5)


class Prometheus:
    """One process and its API. Whoever makes it ends it (``process``)."""

    def __init__(self, folder: Path, targets: dict[str, str], second_actor: str | None = None) -> None:
        """``targets``: ``host:port`` by part; a second actor beside them where one is named."""
        rules, config = write(folder, targets)
        written = yaml.safe_load(rules.read_text())
        for rule in written["groups"][0]["rules"]:
            rule |= SOON
        rules.write_text(yaml.safe_dump(written))
        scraped = yaml.safe_load(config.read_text().replace("5s", "1s"))
        if second_actor is not None:
            scraped["scrape_configs"][0]["static_configs"].append({"targets": [second_actor], "labels": {"part": "actor"}})
        config.write_text(yaml.safe_dump(scraped))
        self._port = free_port()
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
                                             f"--web.listen-address=127.0.0.1:{self._port}"], stdout=log, stderr=log)  # fmt: skip

    def ask(self, path: str, **query: str) -> Any:
        """The ``data`` of an answer of the API."""
        return ask(f"http://127.0.0.1:{self._port}", path, **query)

    def values(self, expression: str) -> list[float]:
        """The numbers of an instant vector, without those that are none."""
        return numbers(self.ask("query", query=expression))

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}


def ask(url: str, path: str, **query: str) -> Any:
    """The ``data`` of an answer of a Prometheus' API."""
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        told = json.load(answer)
    assert told["status"] == "success", told
    return told["data"]


def numbers(vector: Any) -> list[float]:
    """Of an instant vector, without those that are none."""
    found = [float(row["value"][1]) for row in vector["result"]]
    return [number for number in found if number == number]
