"""The command ``tidemill``. Exits 0 done, 1 when the operator can fix it (one line, no traceback), 2 for wrong usage."""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from infra.cli.dashboards_commands import console, dashboards
from infra.cli.erase_command import erase
from infra.cli.keys_commands import keys
from infra.cli.learner_commands import learner, upcycle
from infra.cli.promotion_commands import approve, promote, promotions, rollback
from infra.cli.prune_command import prune
from infra.cli.reward_commands import reward
from infra.cli.shared_options import Time, settings_options
from infra.local.part_logs import log_json, quiet
from infra.local.stop_signals import stop_on_signal
from streams.core.errors import TidemillError

ROLES = ("streams", "reward", "learner", "actor", "promoter", "critic", "otlp")


class Front(click.Group):
    """Shows Tidemill's own errors as one line, with exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TidemillError as error:
            click.echo(f"tidemill: {error}", err=True)
            ctx.exit(1)
        except ModuleNotFoundError as error:
            click.echo(f"tidemill: the package that provides {error.name!r} is missing; `tidemill doctor` says what to install", err=True)
            ctx.exit(1)


@click.group(cls=Front, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidemill", message="%(prog)s %(version)s")
def main() -> None:
    """Tidemill: closed-loop learning from deployed agents.

    Conversations and feedback are recorded on Kafka, feedback refits a reward model, a learner trains LoRA adapters with it, and the actor serves
    them.
    """


@main.command()
@click.option("--minutes", default=12.0, show_default=True, type=click.FloatRange(2, 600), help="How long it takes, start-up included.")
@click.option("--at-most", default=30.0, show_default=True, type=click.FloatRange(2, 600), help="It goes on so long where no rise is shown.")
@click.option("--policy", "base", default=None, help="smollm2 or tiny (a random 2-layer MoE and an easy preference, for tests).")
@click.option("--seed", default=None, type=click.IntRange(0), help="Seed of people, sampling and evaluation.")
@click.option("--keep", "keep", default=None, type=click.Path(path_type=Path, file_okay=False), help="Keep the run in this folder.")
@settings_options
def demo(
    minutes: float, at_most: float, base: str | None, seed: int | None, keep: Path | None, config: str | None, overrides: tuple[str, ...]
) -> None:
    """Run the whole ring with simulated people, and report whether its answers got better. Exit 1: an arrow of the ring is broken."""
    from infra.demo.demo import run_demo

    quiet()
    sys.exit(run_demo(minutes, max(minutes, at_most), base, seed, keep, config, overrides))


@main.command()
@settings_options
def up(config: str | None, overrides: tuple[str, ...]) -> None:
    """Run the ring for your own agents until stopped: streams, reward, learner, actor, and an embedded Kafka unless the settings name a cluster."""
    from infra.local.up import run_up
    from infra.settings.config import load

    quiet()
    run_up(load(config or "laptop", overrides))


@main.command()
@click.argument("role", type=click.Choice(ROLES))
@settings_options
def run(role: str, config: str | None, overrides: tuple[str, ...]) -> None:
    """Run one part: streams (join and lake), reward, learner, actor, promoter (for promotion.mode = gated), critic (judges by a rubric), otlp
    (receives OpenTelemetry spans)."""
    from infra.local.part_process import run_role
    from infra.settings.config import load

    log_json(role)
    run_role(role, load(config, overrides), stop_on_signal)


@main.command()
@click.option("--folder", default=Path("runs/broker"), show_default=True, type=click.Path(path_type=Path, file_okay=False), help="Data and logs.")
@settings_options
def broker(folder: Path, config: str | None, overrides: tuple[str, ...]) -> None:
    """Run only the embedded Apache Kafka, until stopped."""
    from infra.local.embedded_broker import Broker
    from infra.settings.config import load

    stopping = stop_on_signal()
    with Broker(load(config, overrides).broker, folder, lambda part: click.echo(f"fetching Apache Kafka: {part:.0%}", err=True)) as running:
        click.echo(f"Apache Kafka listens on {running.bootstrap_servers}; data in {folder}. Ctrl-C stops it.")
        while not stopping.wait(1.0):
            if not running.running():
                raise click.ClickException(f"the broker stopped by itself; see {folder / 'kafka.log'}")


@main.command()
@click.option("--create", is_flag=True, help="Create the topics that are missing.")
@click.option("--acls", is_flag=True, help="Also give each part's principal its rights (ACLs), and show them. You need Alter on the cluster.")
@click.option("--principals", default="User:tidemill-{part}", show_default=True, help="Pattern of the parts' principals.")
@settings_options
def topics(create: bool, acls: bool, principals: str, config: str | None, overrides: tuple[str, ...]) -> None:
    """Compare the cluster's topics with the ones that Tidemill needs; --create creates missing ones."""
    from infra.settings.config import load
    from streams.core.topics import TOPICS
    from streams.kafka import PARTS, create_topics, grant_rights, grants, principal_of, topic_differences

    settings = load(config, overrides).kafka
    created = create_topics(settings) if create else []
    differences = topic_differences(settings)
    for topic in TOPICS:
        state = "created" if topic.name in created else "; ".join(differences.get(topic.name, ["as it should be"]))
        click.echo(f"{topic.name:<28} {state}")
    if acls:
        grant_rights(settings, principals)
        for part in PARTS:
            click.echo(f"\n{principal_of(part, principals)}")
            for operation, kind, name in grants(part):
                click.echo(f"  {operation:<16} {kind:<8} {name}")
    if differences:
        sys.exit(1)


@main.command()
@click.option("--base-url", default="http://127.0.0.1:8000/v1", show_default=True, help="Base URL of an actor.")
@click.option("--minutes", default=1.0, show_default=True, type=click.FloatRange(min=0.01))
@click.option("--api-key", default="none", envvar="OPENAI_API_KEY", help="API key, if the actor requires one; better in the variable OPENAI_API_KEY.")
@click.option("--preferences", is_flag=True, help="Only list the preferences that simulated people can have.")
@settings_options
def simulate(base_url: str, minutes: float, api_key: str, preferences: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Let simulated people talk to an actor and give thumbs."""
    from infra.demo.demo import simulate_for
    from infra.settings.config import load
    from infra.simulated_people.preferences import PREFERENCES

    if preferences:
        for preference in PREFERENCES.values():
            click.echo(f"{preference.name}: {preference.words}")
        return
    tally = simulate_for(load(config, overrides), base_url, minutes * 60, api_key)
    click.echo(
        f"simulated people got {tally.answers} answers ({tally.failed} requests failed) and gave {tally.thumbs} thumbs, {tally.thumbs_up} of them up"
    )
    if tally.failed:
        sys.exit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --watch one per line.")
@click.option("--watch", is_flag=True, help="Show it again every 5 seconds, until stopped.")
@settings_options
def status(as_json: bool, watch: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Show the state of the ring: labels, reward model, adapters, what is served, dead letters, the ledger."""
    from infra.operate.ring_status import follow_status, show_again, status_now
    from infra.settings.config import load

    settings = load(config, overrides)
    if watch:
        follow_status(settings, lambda found: show_again(found, as_json), stop_on_signal())
        return
    found = status_now(settings)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else found.as_text())


@main.command()
@click.option("--since", type=Time(), default=None, help="Only records that arrived at or after this time (UTC unless it has a zone).")
@click.option("--until", type=Time(), default=None, help="Only records that arrived before this time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with the ids of all missing records.")
@settings_options
def ledger(since: datetime | None, until: datetime | None, as_json: bool, config: str | None, overrides: tuple[str, ...]) -> None:
    """Account for every episode and every feedback on the log. Lists missing ones, and exits 1 when there are any."""
    from infra.operate.ring_status import ledger_now
    from infra.settings.config import load

    found = ledger_now(load(config, overrides), since, until)
    click.echo(json.dumps(found.as_dict(), indent=1) if as_json else str(found))
    if not found.balanced:
        sys.exit(1)


@main.command()
@settings_options
def doctor(config: str | None, overrides: tuple[str, ...]) -> None:
    """Check this machine and the ring, and say for each problem how to fix it."""
    from infra.operate.doctor import examine

    findings = examine(config, overrides)
    for finding in findings:
        click.echo(str(finding))
    if any(not finding.ok for finding in findings):
        sys.exit(1)


@main.command()
def keygen() -> None:
    """Make a pair of keys for signing adapters and reward models, and say where each belongs."""
    from streams.artifacts.signing import KeyPair

    pair = KeyPair.generate()
    click.echo(f"# for the parts that publish (reward, learner); keep it secret\nTIDEMILL_SIGNING__PRIVATE_KEY={pair.private_key.get_secret_value()}")
    click.echo(f'# for every part, in its settings\n[signing]\ntrusted_keys = ["{pair.public_key}"]')


@main.command(name="config")
@settings_options
def show_config(config: str | None, overrides: tuple[str, ...]) -> None:
    """Print the resolved settings as TOML, without secrets."""
    from infra.settings.config import load, to_toml

    click.echo(to_toml(load(config, overrides)), nl=False)


for one in (reward, learner, upcycle, erase, prune, keys, dashboards, console, promotions, promote, approve, rollback):
    main.add_command(one)


if __name__ == "__main__":
    main(prog_name="tidemill")
