"""Commands that look at a ring: ``status``, ``ledger``, ``topics``, ``doctor``."""

import json
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infra.cli.exit_codes import ExitCode
from infra.cli.shared_options import json_option, settings_options, since_until, warn

if TYPE_CHECKING:
    from infra.settings.run_choice import RunChoice


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --watch one per line.")
@click.option("--watch", is_flag=True, help="Show it again every 5 seconds, until stopped.")
@settings_options
def status(as_json: bool, watch: bool, choice: "RunChoice") -> None:
    """Show the state of the ring: labels, reward model, adapters, what is served, dead letters, the ledger. Exits 3 when records are missing."""
    from infra.local.stop_signals import stop_on_signal
    from infra.operate.ring_status import follow_status, show_again, status_now

    settings = choice.of_run(warn)
    if watch:
        follow_status(settings, lambda found: show_again(found, as_json), stop_on_signal())
        return
    found = status_now(settings)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else found.as_text())
    if not found.ledger.balanced:
        sys.exit(ExitCode.FAULT_FOUND)


@click.command()
@since_until("records that arrived")
@click.option("--json", "as_json", is_flag=True, help="JSON, with the ids of all missing records.")
@settings_options
def ledger(since: datetime | None, until: datetime | None, as_json: bool, choice: "RunChoice") -> None:
    """Account for every episode and every feedback on the log. Lists missing ones, and exits 3 when there are any."""
    from infra.operate.ring_status import ledger_now

    found = ledger_now(choice.of_run(warn), since, until)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else str(found))
    if not found.balanced:
        sys.exit(ExitCode.FAULT_FOUND)


@click.command()
@click.option("--create", is_flag=True, help="Create the topics that are missing.")
@click.option("--acls", is_flag=True, help="Also give each part's principal its rights (ACLs), and show them. You need Alter on the cluster.")
@click.option("--principals", default="User:tidemill-{part}", show_default=True, help="Pattern of the parts' principals.")
@json_option
@settings_options
def topics(create: bool, acls: bool, principals: str, as_json: bool, choice: "RunChoice") -> None:
    """Compare the cluster's topics with the ones that Tidemill needs; --create creates missing ones. Exits 3 when they differ."""
    from streams.core.topics import TOPICS
    from streams.kafka import PARTS, create_topics, grant_rights, grants, principal_of, topic_differences

    settings = choice.of_run(warn).kafka
    created = create_topics(settings) if create else []
    differences = topic_differences(settings)
    if acls:
        grant_rights(settings, principals)
    rights = {principal_of(part, principals): grants(part) for part in PARTS} if acls else {}
    if as_json:
        told = {topic.name: {"created": topic.name in created, "differences": differences.get(topic.name, [])} for topic in TOPICS}
        click.echo(json.dumps({"topics": told, **({"rights": {who: [list(right) for right in has] for who, has in rights.items()}} if acls else {})}))
    else:
        for topic in TOPICS:
            state = "created" if topic.name in created else "; ".join(differences.get(topic.name, ["as it should be"]))
            click.echo(f"{topic.name:<28} {state}")
        for who, has in rights.items():
            click.echo(f"\n{who}")
            for operation, kind, name in has:
                click.echo(f"  {operation:<16} {kind:<8} {name}")
    if differences:
        sys.exit(ExitCode.FAULT_FOUND)


@click.command()
@click.option("--base", "base", default=None, type=click.Path(path_type=Path, file_okay=False), help="Check this folder of a base instead.")
@json_option
@settings_options
def doctor(base: Path | None, as_json: bool, choice: "RunChoice") -> None:
    """Check this machine and the ring, and say for each problem how to fix it. With --base: what works with a base, before anything starts. Exits
    1 when there is a problem."""
    if base is not None:
        from infra.operate.doctor_base import examine_base

        findings = examine_base(base, choice.load("laptop"))
    else:
        from infra.operate.doctor import examine

        findings = examine(choice)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            click.echo(str(finding))
    if any(not finding.ok for finding in findings):
        sys.exit(ExitCode.FIXABLE)
