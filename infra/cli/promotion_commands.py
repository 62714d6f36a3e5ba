"""``tidemill promotions``, ``promote``, ``approve`` and ``rollback``. They read the log and write one Promotion event."""

import getpass
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from infra.cli.confirmation import Confirmation, confirm_options
from infra.cli.shared_options import json_option, settings_options, since_until, warn

if TYPE_CHECKING:
    from infra.settings.config import Settings
    from infra.settings.run_choice import RunChoice


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "operator"


BY = click.option("--by", default=_user, show_default="the user's name", help="Who decides; recorded on the log.")
REASON = click.option("--reason", default=None, help="Why; recorded on the log.")


@click.command()
@since_until("trials that moved")
@json_option
@settings_options
def promotions(since: datetime | None, until: datetime | None, as_json: bool, choice: "RunChoice") -> None:
    """Show production, the current trial, and all trials: how each ended, its uplift with interval, and what it cost."""
    from actor.promotion.promotion_stages import fold
    from infra.operate.promotion_history import history, read_adapters, read_promotions, standing_as_dict

    settings = choice.of_run(warn)
    events = read_promotions(settings)
    standing, trials = fold(settings.policy.name, events), history(settings.policy.name, events, read_adapters(settings))
    trials = [each for each in trials if (since is None or each.moves[-1].at >= since) and (until is None or each.moves[-1].at < until)]
    if as_json:
        click.echo(json.dumps(standing_as_dict(standing, trials), indent=1))
        return
    click.echo(f"production   {standing.production or 'base'}   (rollback target: {standing.previous or 'base'})")
    if standing.share < 1:
        click.echo(f"held back    {1 - standing.share:.0%} of conversations stay with {standing.previous or 'base'}, for comparison")
    trial = standing.trial
    if trial is not None:
        share = f", {trial.canary_share:.0%} of conversations" if trial.stage == "canary" else ""
        click.echo(f"on trial     {trial.adapter}: {trial.stage} since {trial.since:%Y-%m-%d %H:%M} UTC{share}")
        if trial.awaits_approval:
            click.echo("             awaits approval: `tidemill approve`, with this evidence:")
            click.echo(json.dumps(dict(trial.evidence), indent=1))
    if settings.promotion.mode == "newest":
        click.echo("promotion.mode = newest: replicas serve the newest adapter that they attested, and ignore promotions")
    for each in trials:
        click.echo(each.as_text())


@click.command()
@click.argument("adapter")
@click.option("--now", "at_once", is_flag=True, help="Directly to production, without gates, once you confirm.")
@BY
@REASON
@confirm_options()
@settings_options
def promote(adapter: str, at_once: bool, by: str, reason: str | None, confirmation: Confirmation, choice: "RunChoice") -> None:
    """Put ADAPTER (such as default@7) on trial now, instead of at night; with --now directly into production."""
    from infra.operate.promotion_history import read_adapters, refuse_void
    from streams.core.errors import ConfigError

    settings = choice.of_run(warn)
    if adapter not in {version.name for version in read_adapters(settings)}:
        raise ConfigError(f"{adapter} was never published")
    if at_once or confirmation.dry_run:
        deed = f"serve {adapter} to everybody, past all gates" if at_once else f"put {adapter} on trial"
        refuse_void(settings, adapter, "promoted" if at_once else "candidate", by)
        if not confirmation.given(deed):
            return
    _write(settings, adapter, "promoted" if at_once else "candidate", by, reason or "by hand")


@click.command()
@BY
@REASON
@confirm_options()
@settings_options
def approve(by: str, reason: str | None, confirmation: Confirmation, choice: "RunChoice") -> None:
    """Approve the adapter that was better in canary and awaits approval: it is promoted once you confirm."""
    from actor.promotion.promotion_stages import fold
    from infra.operate.promotion_history import read_promotions
    from streams.core.errors import ConfigError

    settings = choice.of_run(warn)
    trial = fold(settings.policy.name, read_promotions(settings)).trial
    if trial is None or not trial.awaits_approval:
        raise ConfigError("no adapter awaits approval; see `tidemill promotions`")
    if not confirmation.given(f"serve {trial.adapter} to everybody"):
        return
    _write(settings, trial.adapter, "promoted", by, reason or "approved", evidence=dict(trial.evidence))


@click.command()
@click.option("--to", default=None, metavar="ADAPTER", help="Rollback target, such as default@5; default@0 is the base.")
@click.option("--trial", is_flag=True, help="End only the current trial; production does not change.")
@BY
@REASON
@settings_options
def rollback(to: str | None, trial: bool, by: str, reason: str | None, choice: "RunChoice") -> None:
    """Roll production back to the adapter before it, or --to another; this also ends the current trial. With --trial, end only the trial."""
    from actor.promotion.promotion_stages import fold
    from infra.operate.promotion_history import read_promotions
    from streams.core.errors import ConfigError

    settings = choice.of_run(warn)
    standing = fold(settings.policy.name, read_promotions(settings))
    if trial:
        if standing.trial is None:
            raise ConfigError("no adapter is on trial")
        move = "rolled_back" if standing.trial.stage == "canary" else "rejected"
        _write(settings, standing.trial.adapter, move, by, reason or "ended by hand")
        return
    if standing.production is None:
        raise ConfigError("the base is in production: there is nothing to go back to")
    _write(settings, standing.production, "rolled_back", by, reason or "by hand", to=to)


def _write(settings: "Settings", adapter: str, move: str, by: str, reason: str, **fields: Any) -> None:
    from infra.operate.promotion_history import write_move

    standing, took_s = write_move(settings, adapter, move, by, reason, **fields)
    click.echo(f"{adapter} {move} by {by}, on the log after {took_s:.2f} s; in production: {standing.production or 'base'}")
    if settings.promotion.mode == "newest":
        click.echo("promotion.mode = newest: replicas ignore this promotion; set promotion.mode to gated", err=True)
