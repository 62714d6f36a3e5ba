"""``tidemill up``: runs the ring for your own agents until stopped. In which order the parts start: ``start_order.py``."""

import time
from collections.abc import Callable
from functools import partial

import click

from infra.local.local_ring import Ring, Sizing
from infra.local.stop_signals import StopRequested, stop_on_signal
from infra.machine.step_prediction import sized_for
from infra.operate.learning_needs import learning_of, progress_file
from infra.operate.log_watch import LogWatch
from infra.settings.config import Settings
from infra.settings.part_addresses import in_url, metrics_targets
from infra.settings.run_choice import RESOLVED

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


def learner_runs(settings: Settings) -> bool:
    """True once this run's learner has loaded its base: it deletes the file of its progress when it starts, and writes it from then on."""
    try:
        return progress_file(settings).stat().st_mtime >= (settings.run_folder / RESOLVED).stat().st_mtime
    except OSError:
        return False


def ready_text(settings: Settings) -> str:
    """What a ring says when its actor takes requests: every address, whether the learner is ready, and how to begin."""
    actor, console = f"http://{in_url(settings.actor.host)}:{settings.actor.port}", settings.console
    others = {role: address for role, address in metrics_targets(settings).items() if role != "actor"}
    rows = {
        "OpenAI API": f"{actor}/v1   (model {settings.policy.name!r})",
        "chat": f"{actor}/chat",
        "console": f"http://{in_url(console.host)}:{console.port}/   once `tidemill console` runs",
        "metrics": f"{actor}/metrics" + (f", {', '.join(f'{role} {address}' for role, address in others.items())}" if others else
                                         "   (set metrics_port for those of the other parts)"),
        "Kafka": str(settings.kafka.bootstrap_servers),
        "run folder": str(settings.run_folder),
        "learner": "ready" if learner_runs(settings) else "still starting; a line says when it is ready",
    }  # fmt: skip
    return f"""
Ready.

{chr(10).join(f"  {name:<12}{told}" for name, told in rows.items())}

  from openai import OpenAI
  client = OpenAI(base_url="{actor}/v1", api_key="none")
  print(client.chat.completions.create(model="{settings.policy.name}", messages=[{{"role": "user", "content": "Hello!"}}]))

  curl {actor}/v1/feedback -H 'content-type: application/json' -d '{{"episode_id": "EPISODE", "thumb": "up"}}'

EPISODE is the answer's header x-tidemill-episode. Ctrl-C stops everything."""


def run_up(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM. Dead parts are restarted, Kafka too. A crash loop is reported, and the other parts go on."""
    stopping = stop_on_signal()

    def stop_early() -> None:
        if stopping.is_set():
            raise StopRequested("stopped before the actor was ready; nothing is left running")

    with Ring(settings, lambda line: click.echo(line, err=True), keeps_going=True, sizing=step_sizing(settings), meanwhile=stop_early) as ring:
        click.echo("starting vLLM (ten seconds to a minute)", err=True)
        ring.await_actor(START_TIMEOUT_S, stop_early)
        click.echo(ready_text(ring.settings))
        watch = LogWatch(ring.settings.kafka, ring.settings.gated_policy)
        watch.start()
        serving, learning, starting = "base", LearningLines(), True
        while not stopping.wait(2.0):
            ring.check()
            if starting and learner_runs(ring.settings):
                starting = False
                click.echo("the learner is ready")
            if watch.caught_up and (line := learning.worth_saying(learning_of(ring.settings, watch.facts))):
                click.echo(f"learning: {line}")
            if watch.facts.serving != serving:
                serving = watch.facts.serving
                click.echo(f"now serving {serving}")
        click.echo("stopping", err=True)
        watch.stop()
