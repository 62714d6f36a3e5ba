"""Commands for operators that stand beside the ring: the files of Prometheus, and the console."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

SettingsOptions = Callable[[Callable[..., None]], Callable[..., None]]


def add_to(main: click.Group, dashboards: click.Group, settings_options: SettingsOptions) -> None:
    """Hook the commands in."""
    folder = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
    dashboards.add_command(click.command(name="alerts")(folder(settings_options(alerts))))
    main.add_command(click.command(name="console")(settings_options(console)))


def alerts(folder: Path, config: str | None, overrides: tuple[str, ...]) -> None:
    """Write Prometheus' rules, and where metrics_port is set a prometheus.yml that scrapes the ring's parts."""
    from dashboards.alerts import write
    from infra.config import load
    from infra.roles import metrics_targets, ray_metrics_port

    settings = load(config, overrides)
    ray = ray_metrics_port(settings)
    for path in write(folder, metrics_targets(settings), {"ray": f"127.0.0.1:{ray}"} if ray else {}):
        click.echo(str(path))


def console(config: str | None, overrides: tuple[str, ...]) -> None:
    """Serve the operator's page: the ring, curves, versions, episodes, dead letters; with an operator key, replay, promote and roll back."""
    from dashboards.console.serve import run_console
    from infra.config import load
    from infra.explaining import Explainer
    from infra.logs import log_json
    from infra.status import of_run

    log_json("console")
    settings = load(config, overrides)
    running = of_run(settings)
    explainer = Explainer(running)

    def explain(episode_id: str) -> dict[str, Any]:
        return explainer.explain(episode_id).as_dict()

    run_console(settings.console, running.kafka, running.promotion.mode == "gated", lambda line: click.echo(line, err=True), explain)
