"""``tidemill up``: runs the ring for your own agents until stopped. In which order the parts start: ``start_order.py``."""

import time
from collections.abc import Callable
from functools import partial

import click

from infra.local.local_ring import Ring, Sizing
from infra.local.stop_signals import stop_on_signal
from infra.machine.step_prediction import sized_for
from infra.operate.learning_needs import learning_of
from infra.operate.log_watch import LogWatch
from infra.settings.config import Settings
from streams.core.errors import Unavailable

START_TIMEOUT_S = 600.0
AGAIN_S = 30.0


class LearningLines:
    """Chooses which status sentences about learning to print: a new need or phase at once, a sentence with only new numbers every 30 seconds."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s, self._said, self._said_at_s = clock_s, "", -AGAIN_S

    def worth_saying(self, sentence: str) -> str | None:
        """The sentence if it should be printed, else None."""
        of_a_step = sentence.startswith("step ")
        same = sentence == self._said or (of_a_step and sentence.partition(",")[0] == self._said.partition(",")[0])
        if sentence == self._said or sentence.startswith("waits ") or (same and self._clock_s() - self._said_at_s < AGAIN_S):
            return None
        self._said, self._said_at_s = sentence, self._clock_s()
        return sentence


def step_sizing(settings: Settings) -> Sizing | None:
    """Fits one step of the learner into ``learner.step_minutes``; None where that is 0."""
    return partial(sized_for, minutes=settings.learner.step_minutes, steps=1) if settings.learner.step_minutes else None


def run_up(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM. Dead parts are restarted, Kafka too. A crash loop is reported, and the other parts go on."""
    stopping = stop_on_signal()

    def stop_early() -> None:
        if stopping.is_set():
            raise Unavailable("stopped before the actor was ready")

    with Ring(settings, lambda line: click.echo(line, err=True), keeps_going=True, sizing=step_sizing(settings), meanwhile=stop_early) as ring:
        click.echo("starting vLLM (ten seconds to a minute)", err=True)
        ring.await_actor(START_TIMEOUT_S, stop_early)
        click.echo(f"""
The ring turns. Kafka: {ring.settings.kafka.bootstrap_servers}   run folder: {ring.settings.run_folder}

  from openai import OpenAI
  client = OpenAI(base_url="{ring.base_url}", api_key="none")
  print(client.chat.completions.create(model="{ring.settings.policy.name}", messages=[{{"role": "user", "content": "Hello!"}}]))

  curl {ring.base_url}/feedback -H 'content-type: application/json' -d '{{"episode_id": "EPISODE", "kind": "thumb", "thumb": "up"}}'

EPISODE is the answer's header x-tidemill-episode. Ctrl-C stops everything.""")
        watch = LogWatch(ring.settings.kafka, ring.settings.gated_policy)
        watch.start()
        serving, learning = "base", LearningLines()
        while not stopping.wait(2.0):
            ring.check()
            if watch.caught_up and (line := learning.worth_saying(learning_of(ring.settings, watch.facts))):
                click.echo(f"learning: {line}")
            if watch.facts.serving != serving:
                serving = watch.facts.serving
                click.echo(f"now serving {serving}")
        click.echo("stopping", err=True)
        watch.stop()
