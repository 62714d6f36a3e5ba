"""``tidemill prune``: delete adapters and reward models that are no longer needed."""

from datetime import UTC, datetime

import click

from infra.cli.shared_options import settings_options


@click.command()
@click.option("--delete", is_flag=True, help="Delete them. Without this option they are only listed.")
@settings_options
def prune(delete: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """List adapters and reward models that are no longer needed; --delete deletes them for good.

    Production, rollback targets, candidates, adapters that a replica serves, the newest ones, and the reward models of all these are kept (see the
    settings in [prune]). When the log cannot tell what is in use, nothing is deleted.
    """
    from infra.operate.pruning import plan_now
    from infra.operate.ring_status import of_run
    from infra.settings.config import load

    store, found = plan_now(of_run(load(config, overrides)), datetime.now(UTC))
    click.echo(str(found))
    if delete:
        removed = sum(store.remove(path) for path in found.unneeded)
        click.echo(f"{removed} deleted")
    elif found.unneeded:
        click.echo("nothing was deleted; use --delete to delete them")
