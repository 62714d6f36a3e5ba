"""Brings the dashboards to a Grafana: the home of grafana-api. Pushing twice changes nothing."""

import json
from pathlib import Path
from urllib.parse import urlsplit

import requests
from grafana_api.grafana_api import GrafanaClientError, GrafanaException
from grafana_api.grafana_face import GrafanaFace

from dashboards.grafana.grafana_panels import CONSOLE_URL, RUNBOOKS_URL, dashboards
from streams.core.errors import ConfigError, Unavailable

FOLDER_UID, FOLDER_TITLE = "tidemill", "Tidemill"
DATA_SOURCE_NAME = "Prometheus (Tidemill)"


def push(url: str, token: str, prometheus_url: str | None = None, console: str = CONSOLE_URL, runbooks: str = RUNBOOKS_URL) -> list[str]:
    """Folder, data source (when ``prometheus_url`` is given) and every dashboard; returns the uids.

    Raises ConfigError for a URL or token that Grafana does not take, Unavailable when it does not answer.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--url {url}: write http://host:port or https://host")
    prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
    grafana = GrafanaFace(auth=token, host=parts.hostname, port=parts.port, protocol=parts.scheme, url_path_prefix=prefix)
    try:
        _folder(grafana)
        if prometheus_url:
            _data_source(grafana, prometheus_url)
        for model in dashboards(console, runbooks).values():
            grafana.dashboard.update_dashboard(
                {"dashboard": model, "folderUid": FOLDER_UID, "overwrite": True, "message": "tidemill dashboards push"}
            )
    except GrafanaClientError as error:
        raise ConfigError(f"Grafana at {url} refused with {error.status_code}: {error.message}") from None
    except (GrafanaException, requests.RequestException) as error:
        raise Unavailable(f"Grafana at {url} does not answer as it should: {error}") from None
    return list(dashboards())


def write(folder: Path, console: str = CONSOLE_URL, runbooks: str = RUNBOOKS_URL) -> list[Path]:
    """The same dashboards as JSON files, for Grafana's provisioning."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for uid, model in dashboards(console, runbooks).items():
        path = folder / f"{uid}.json"
        path.write_text(json.dumps(model, indent=1) + "\n")
        written.append(path)
    return written


def _folder(grafana: GrafanaFace) -> None:
    if all(folder["uid"] != FOLDER_UID for folder in grafana.folder.get_all_folders()):
        grafana.folder.create_folder(FOLDER_TITLE, uid=FOLDER_UID)


def _data_source(grafana: GrafanaFace, prometheus_url: str) -> None:
    wanted = {"name": DATA_SOURCE_NAME, "type": "prometheus", "url": prometheus_url, "access": "proxy"}
    found = [source for source in grafana.datasource.list_datasources() if source["name"] == DATA_SOURCE_NAME]
    if not found:
        grafana.datasource.create_datasource(wanted)
    elif found[0].get("url") != prometheus_url:
        grafana.datasource.update_datasource(found[0]["id"], {**found[0], **wanted})
