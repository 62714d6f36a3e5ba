"""``tidemill erase``: erase a person's data in every part, with a certificate."""

import json
import sys
from typing import TYPE_CHECKING

import click

from infra.cli.confirmation import Confirmation, confirm_options
from infra.cli.exit_codes import ExitCode
from infra.cli.shared_options import json_option, settings_options, warn

if TYPE_CHECKING:
    from infra.settings.run_choice import RunChoice


@click.command()
@click.argument("user")
@click.option("--by", "requested_by", default="operator", show_default=True, help="Who asked for it; recorded with the erasure.")
@click.option("--wait", "wait_s", default=None, type=click.FloatRange(0), help="Seconds to wait until all parts have reported. Default: 60 from the "
              "last report, and for as long as a learner on this machine is in the middle of a step.")  # fmt: skip
@click.option("--certificate", "only_certificate", is_flag=True, help="No new erasure: only show the certificate of the last one.")
@json_option
@confirm_options()
@settings_options
def erase(
    user: str, requested_by: str, wait_s: float | None, only_certificate: bool, as_json: bool, confirmation: Confirmation, choice: "RunChoice"
) -> None:
    """Erase everything that USER (the user_id that agents send) said or asked until now, in every part, and print a certificate; exits 4 while a part
    has not reported."""
    from infra.operate.erasure_certificate import ask, certificate, newest_erasure
    from infra.operate.erasure_wait import ErasureWait
    from infra.operate.learning_needs import progress_file
    from learner.runs.step_progress import read_progress
    from streams.core.errors import ConfigError
    from streams.core.events import ANONYMOUS

    settings = choice.of_run(warn)
    if user == ANONYMOUS:
        raise ConfigError(f"'{ANONYMOUS}' stands for all people without a name: retract single feedback instead")
    if not only_certificate and not confirmation.given(f"erase all that {user!r} said or asked, in every part, for good"):
        return
    erasure = newest_erasure(settings.kafka, user) if only_certificate else ask(settings.kafka, user, requested_by)
    if erasure is None:
        raise ConfigError("there is no erasure of that person: run the command without --certificate")
    say = (lambda line: None) if only_certificate else warn
    wait = ErasureWait(lambda: certificate(settings.kafka, settings.policy.name, erasure), lambda: read_progress(progress_file(settings)), say)
    found = wait.until_complete(0 if only_certificate else wait_s)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else str(found))
    if not found.complete:
        step = wait.step(found)
        soon = "" if step is None or step.left_s is None else f" The learner reports in about {step.left_s:.0f} s, at the end of its step."
        warn(f"not complete yet.{soon} Later: tidemill erase {user} --certificate")
        sys.exit(ExitCode.NOT_YET)
