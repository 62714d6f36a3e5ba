"""``tidemill up``: the ring for a person's own agents, until stopped."""

import click

from infra.local.local_ring import Ring
from infra.local.stop_signals import stop_on_signal
from infra.operate.log_watch import LogWatch
from infra.settings.config import Settings
from streams.core.errors import Unavailable

START_TIMEOUT_S = 600.0


def run_up(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM. A part that dies is started again, Kafka too; one that keeps dying is shown, and the rest goes on."""
    stopping = stop_on_signal()

    def stop_early() -> None:
        if stopping.is_set():
            raise Unavailable("stopped before the actor was ready")

    with Ring(settings, lambda line: click.echo(line, err=True), keeps_going=True) as ring:
        click.echo("starting vLLM (half a minute to two)", err=True)
        ring.await_actor(START_TIMEOUT_S, stop_early)
        click.echo(f"""
The ring turns. Kafka: {ring.settings.kafka.bootstrap_servers}   run folder: {ring.settings.run_folder}

  from openai import OpenAI
  client = OpenAI(base_url="{ring.base_url}", api_key="none")
  print(client.chat.completions.create(model="{ring.settings.policy.name}", messages=[{{"role": "user", "content": "Hello!"}}]))

  curl {ring.base_url}/feedback -H 'content-type: application/json' -d '{{"episode_id": "EPISODE", "kind": "thumb", "thumb": "up"}}'

EPISODE stands in the answer's header x-tidemill-episode. Ctrl-C stops everything.""")
        watch = LogWatch(ring.settings.kafka, ring.settings.gated_policy)
        watch.start()
        serving = "base"
        while not stopping.wait(2.0):
            ring.check()
            if watch.facts.serving != serving:
                serving = watch.facts.serving
                click.echo(f"now serving {serving}")
        click.echo("stopping", err=True)
        watch.stop()
