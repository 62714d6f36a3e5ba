"""``tidemill prune``: delete adapters and reward models that are no longer needed."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from infra.cli.confirmation import Confirmation, confirm_options
from infra.cli.shared_options import json_option, settings_options, warn

if TYPE_CHECKING:
    from infra.settings.run_choice import RunChoice


@click.command()
@json_option
@confirm_options("--delete")
@settings_options
def prune(as_json: bool, confirmation: Confirmation, choice: "RunChoice") -> None:
    """Show adapters and reward models that are no longer needed, and delete them for good once you confirm.

    Production, rollback targets, candidates, adapters that a replica serves, the newest ones, and the reward models of all these are kept (see the
    settings in [prune]). When the log cannot tell what is in use, nothing is deleted.
    """
    from infra.operate.pruning import plan_now

    store, found = plan_now(choice.of_run(warn), datetime.now(UTC))
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else str(found))
    if not found.unneeded or not confirmation.given(f"delete {len(found.unneeded)} artifacts"):
        return
    removed = sum(store.remove(path) for path in found.unneeded)
    click.echo(f"{removed} deleted", err=as_json)
