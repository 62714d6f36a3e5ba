"""Commands for operators that stand beside the ring: the files of Prometheus, and the console."""

from collections.abc import Callable
from pathlib import Path

import click

SettingsOptions = Callable[[Callable[..., None]], Callable[..., None]]


def add_to(main: click.Group, dashboards: click.Group, settings_options: SettingsOptions) -> None:
    """Hook the commands in."""
    dashboards.add_command(
        click.command(name="alerts")(click.argument("folder", type=click.Path(path_type=Path, file_okay=False))(settings_options(alerts)))
    )


def alerts(folder: Path, config: str | None, overrides: tuple[str, ...]) -> None:
    """Write Prometheus' rules, and where metrics_port is set a prometheus.yml that scrapes the ring's parts."""
    from dashboards.alerts import write
    from infra.config import load
    from infra.roles import metrics_targets

    for path in write(folder, metrics_targets(load(config, overrides))):
        click.echo(str(path))
