"""The command ``tidemill``. What its exit statuses mean: ``exit_codes.py``. Commands import what they use when they run."""

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.cli.config_commands import completion, config_commands, init
from infra.cli.dashboards_commands import console, dashboards
from infra.cli.erase_command import erase
from infra.cli.exit_codes import ExitCode
from infra.cli.keys_commands import keygen, keys
from infra.cli.learner_commands import learner, upcycle
from infra.cli.part_commands import logs, restart
from infra.cli.promotion_commands import approve, promote, promotions, rollback
from infra.cli.prune_command import prune
from infra.cli.reward_commands import reward
from infra.cli.ring_commands import doctor, ledger, status, topics
from infra.cli.shared_options import file_options, settings_options, warn
from infra.local.stop_signals import StopRequested
from streams.core.errors import TidemillError

if TYPE_CHECKING:
    from infra.settings.run_choice import RunChoice

ROLES = ("streams", "reward", "learner", "actor", "promoter", "critic", "otlp")


class Front(click.Group):
    """Turns what ends a command into an exit status (``exit_codes.py``). Tidemill's own errors are one line; a bug shows its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StopRequested as error:
            click.echo(f"tidemill: {error}", err=True)
            ctx.exit(ExitCode.STOPPED)
        except TidemillError as error:
            click.echo(f"tidemill: {error}", err=True)
            ctx.exit(ExitCode.FIXABLE)
        except ModuleNotFoundError as error:
            click.echo(f"tidemill: the package that provides {error.name!r} is missing; `tidemill doctor` says what to install", err=True)
            ctx.exit(ExitCode.FIXABLE)
        except (KeyboardInterrupt, click.Abort):
            click.echo("tidemill: stopped", err=True)
            ctx.exit(ExitCode.STOPPED)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception:  # noqa: BLE001 - the process boundary: shown with its traceback, and a status of its own
            click.echo(f"{traceback.format_exc()}tidemill: this is a bug; please report it with the lines above", err=True)
            ctx.exit(ExitCode.BUG)


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
@file_options
def demo(
    minutes: float, at_most: float, base: str | None, seed: int | None, keep: Path | None, config: str | None, overrides: tuple[str, ...]
) -> None:
    """Run the whole ring with simulated people, and report whether its answers got better. Exit 1: an arrow of the ring is broken."""
    from infra.demo.demo import run_demo
    from infra.local.part_logs import quiet

    quiet()
    sys.exit(run_demo(minutes, max(minutes, at_most), base, seed, keep, config, overrides))


@main.command()
@settings_options
def up(choice: "RunChoice") -> None:
    """Run the ring for your own agents until stopped: streams, reward, learner, actor, and an embedded Kafka unless the settings name a cluster."""
    from infra.local.part_logs import quiet
    from infra.local.up import run_up

    quiet()
    run_up(choice.load("laptop"))


@main.command()
@click.argument("role", type=click.Choice(ROLES))
@settings_options
def run(role: str, choice: "RunChoice") -> None:
    """Run one part: streams (join and lake), reward, learner, actor, promoter (for promotion.mode = gated), critic (judges by a rubric), otlp
    (receives OpenTelemetry spans)."""
    from infra.local.part_logs import log_json
    from infra.local.part_process import run_role
    from infra.local.stop_signals import stop_on_signal

    log_json(role)
    run_role(role, choice.load(), stop_on_signal)


@main.command()
@click.option("--folder", default=Path("runs/broker"), show_default=True, type=click.Path(path_type=Path, file_okay=False), help="Data and logs.")
@settings_options
def broker(folder: Path, choice: "RunChoice") -> None:
    """Run only the embedded Apache Kafka, until stopped."""
    from infra.local.embedded_broker import Broker
    from infra.local.stop_signals import stop_on_signal

    stopping = stop_on_signal()
    with Broker(choice.load().broker, folder, lambda part: click.echo(f"fetching Apache Kafka: {part:.0%}", err=True)) as running:
        click.echo(f"Apache Kafka listens on {running.bootstrap_servers}; data in {folder}. Ctrl-C stops it.")
        while not stopping.wait(1.0):
            if not running.running():
                raise click.ClickException(f"the broker stopped by itself; see {folder / 'kafka.log'}")


@main.command()
@click.option("--base-url", default=None, help="Base URL of an actor. Default: the run's.")
@click.option("--minutes", default=1.0, show_default=True, type=click.FloatRange(min=0.01))
@click.option("--api-key", default="none", envvar="OPENAI_API_KEY", help="API key, if the actor requires one; better in the variable OPENAI_API_KEY.")
@click.option("--preferences", is_flag=True, help="Only list the preferences that simulated people can have.")
@settings_options
def simulate(base_url: str | None, minutes: float, api_key: str, preferences: bool, choice: "RunChoice") -> None:
    """Let simulated people talk to an actor and give thumbs."""
    from infra.demo.demo import simulate_for
    from infra.settings.part_addresses import actor_url
    from infra.simulated_people.preferences import PREFERENCES

    if preferences:
        for preference in PREFERENCES.values():
            click.echo(f"{preference.name}: {preference.words}")
        return
    settings = choice.load() if base_url else choice.of_run(warn)
    tally = simulate_for(settings, base_url or actor_url(settings), minutes * 60, api_key)
    click.echo(
        f"simulated people got {tally.answers} answers ({tally.failed} requests failed) and gave {tally.thumbs} thumbs, {tally.thumbs_up} of them up"
    )
    if tally.failed:
        sys.exit(1)


for one in (status, ledger, topics, doctor, logs, restart, init, config_commands, completion, reward, learner, upcycle, erase, prune, keys, keygen,
            dashboards, console, promotions, promote, approve, rollback):  # fmt: skip
    main.add_command(one)


if __name__ == "__main__":
    main(prog_name="tidemill")
