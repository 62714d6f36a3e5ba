"""``tidemill dashboards …``: Grafana dashboards and Prometheus rules. ``tidemill console``: the web page for operators."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.cli.shared_options import settings_options, warn

if TYPE_CHECKING:
    from infra.settings.run_choice import RunChoice


runbooks_option = click.option("--runbooks", default="docs/runbooks", show_default=True, help="URL at which you publish docs/runbooks.")


def link_options(command: Callable[..., None]) -> Callable[..., None]:
    """Where links on dashboards lead."""
    console = click.option("--console-url", default="http://127.0.0.1:8090/", show_default=True, help="URL of the console, for a link.")
    return console(runbooks_option(command))


@click.group()
def dashboards() -> None:
    """Grafana dashboards and Prometheus alerts, built from the metric table."""


@dashboards.command()
@click.option("--url", required=True, help="Grafana's URL, such as http://localhost:3000.")
@click.option("--token", required=True, envvar="GRAFANA_TOKEN", help="Token of a service account; better in the variable GRAFANA_TOKEN.")
@click.option("--prometheus-url", default=None, help="Also create a data source for this Prometheus.")
@link_options
def push(url: str, token: str, prometheus_url: str | None, console_url: str, runbooks: str) -> None:
    """Create or update folder, data source and dashboards in a Grafana. Idempotent."""
    from dashboards.grafana.grafana_push import push

    click.echo(f"pushed {', '.join(push(url, token, prometheus_url, console_url, runbooks))} to {url}")


@dashboards.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@link_options
def write(folder: Path, console_url: str, runbooks: str) -> None:
    """Write the dashboards as JSON files, for Grafana's provisioning."""
    from dashboards.grafana.grafana_push import write

    for path in write(folder, console_url, runbooks):
        click.echo(str(path))


@dashboards.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--host", default=None, help="Name of the parts' machine for a Prometheus elsewhere. Default: by metrics_host and actor.host.")
@runbooks_option
@settings_options
def alerts(folder: Path, host: str | None, runbooks: str, choice: "RunChoice") -> None:
    """Write Prometheus' alert rules and, if metrics_port is set, a prometheus.yml that scrapes all parts."""
    from dashboards.alerts.alert_rules import write
    from infra.settings.part_addresses import LOOPBACK, metrics_targets, ray_metrics_port

    settings = choice.of_run(warn)
    ray = ray_metrics_port(settings)
    for path in write(folder, metrics_targets(settings, host), {"ray": f"{host or LOOPBACK}:{ray}"} if ray else {}, runbooks):
        click.echo(str(path))


@click.command()
@settings_options
def console(choice: "RunChoice") -> None:
    """Serve the console: the ring, curves, adapters, episodes, dead letters. With an operator key it can also replay, promote and roll back."""
    from dashboards.console.console_process import run_console
    from infra.local.part_logs import log_json
    from infra.operate.explain_episode import Explainer
    from infra.operate.learning_needs import learning_of
    from infra.operate.part_health import HealthWatch, health_of

    log_json("console")
    running = choice.of_run(warn)
    explainer = Explainer(running)

    def explain(episode_id: str) -> dict[str, Any]:
        return explainer.explain(episode_id).as_dict()

    health = HealthWatch(lambda: health_of(running))
    health.start()
    run_console(running.console, running.kafka, running.promotion.mode == "gated", lambda line: click.echo(line, err=True), explain,
                lambda facts: learning_of(running, facts), lambda: health.found)  # fmt: skip
    health.stop()
