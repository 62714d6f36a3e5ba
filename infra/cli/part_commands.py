"""``tidemill logs`` and ``tidemill restart``: the parts of a ring on this machine."""

from datetime import datetime
from typing import TYPE_CHECKING

import click

from infra.cli.shared_options import json_option, settings_options, since_until, warn

if TYPE_CHECKING:
    from infra.settings.run_choice import RunChoice

RESTART_S = 180.0


@click.command()
@click.argument("parts", nargs=-1)
@click.option("--follow", "-f", is_flag=True, help="Go on with new lines, until stopped.")
@click.option("--lines", "-n", default=40, show_default=True, type=click.IntRange(0), help="How many of the last lines; 0: all.")
@since_until("lines written")
@json_option
@settings_options
def logs(
    parts: tuple[str, ...], follow: bool, lines: int, since: datetime | None, until: datetime | None, as_json: bool, choice: "RunChoice"
) -> None:
    """Show what PARTS of a ring on this machine logged (all but Kafka without a name), in order of time (UTC)."""
    from infra.local.stop_signals import stop_on_signal
    from infra.operate.part_log import LogLine, PartLogs

    found = PartLogs(choice.of_run(warn).run_folder, parts)

    def show(line: LogLine) -> None:
        click.echo(line.as_json() if as_json else line.as_text())

    for line in found.last(lines, since, until):
        show(line)
    if follow:
        found.follow(show, stop_on_signal().wait)


@click.command()
@click.argument("part")
@click.option("--wait", "wait_s", default=RESTART_S, show_default=True, type=click.FloatRange(1), help="Seconds until it must have been restarted.")
@settings_options
def restart(part: str, wait_s: float, choice: "RunChoice") -> None:
    """Restart PART of a ring that runs on this machine: it stops as at Ctrl-C and starts again, while the others go on."""
    from infra.operate.restart_requests import await_restart, request_restart

    asked = request_restart(choice.of_run(warn).run_folder, part)
    click.echo(f"asked the ring to restart {part}", err=True)
    await_restart(asked, wait_s)
    click.echo(f"{part} was restarted")
