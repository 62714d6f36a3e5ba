"""``tidemill prune``: delete the adapters and reward models that nobody needs any more."""

from datetime import UTC, datetime

import click

from infra.cli.shared_options import settings_options


@click.command()
@click.option("--delete", is_flag=True, help="Delete them. Without it they are only shown.")
@settings_options
def prune(delete: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Show the adapters and reward models that nobody needs any more; --delete deletes them for good.

    Kept are production, what may be gone back to, what is or may be tried, what a replica serves, the newest, and the reward models of all these
    (settings: prune). Where the log cannot say what is in use, nothing is deleted.
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
        click.echo("nothing is deleted without --delete")
