"""``tidemill erase``: erase a person's data in every part, with a certificate."""

import json
import sys

import click

from infra.cli.shared_options import settings_options


@click.command()
@click.argument("user")
@click.option("--by", "requested_by", default="operator", show_default=True, help="Who asked for it; recorded with the erasure.")
@click.option("--wait", "wait_s", default=60.0, show_default=True, type=click.FloatRange(0), help="Seconds to wait until all parts have reported.")
@click.option("--certificate", "only_certificate", is_flag=True, help="No new erasure: only show the certificate of the last one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@settings_options
def erase(user: str, requested_by: str, wait_s: float, only_certificate: bool, as_json: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Erase everything that USER (the user_id that agents send) said or asked until now, in every part, and print a certificate; exits 1 while a part
    has not reported."""
    from infra.operate.erasure_certificate import ask, await_certificate, newest_erasure
    from infra.operate.ring_status import of_run
    from infra.settings.config import load
    from streams.core.errors import ConfigError
    from streams.core.events import ANONYMOUS

    settings = of_run(load(config, overrides))
    if user == ANONYMOUS:
        raise ConfigError(f"'{ANONYMOUS}' stands for all people without a name: retract single feedback instead")
    erasure = newest_erasure(settings.kafka, user) if only_certificate else ask(settings.kafka, user, requested_by)
    if erasure is None:
        raise ConfigError("there is no erasure of that person: run the command without --certificate")
    found = await_certificate(settings.kafka, settings.policy.name, erasure, 0 if only_certificate else wait_s)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else str(found))
    if not found.complete:
        sys.exit(1)
