"""``tidemill status`` and ``tidemill ledger``: the state of the ring, from its log."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import click

from infra.local.part_states import parts_line, states_of
from infra.machine.machine_probe import known_choice
from infra.operate.learning_needs import learning_of
from infra.operate.log_watch import LogFacts, LogWatch
from infra.operate.part_health import PartHealth, health_lines, health_of
from infra.settings.config import Settings
from streams.join.ledger import Ledger, read_ledger

LEDGER_EVERY = 6


@dataclass(frozen=True)
class Status:
    """The facts that ``tidemill status`` shows."""

    facts: LogFacts
    ledger: Ledger
    learning: str
    """What the learner is doing, or what is still missing before it starts."""
    machine: tuple[str, ...] = ()
    """Precision, threads and layout of the parts on this machine, one sentence each."""
    parts: dict[str, str] = field(default_factory=dict)
    """State of each part by name, from ``up`` on this machine; empty when the ring does not run here."""
    run_folder: str = ""
    health: tuple[PartHealth, ...] = ()
    """Every part that can be asked from here."""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        facts, model = self.facts, self.facts.reward_models[-1] if self.facts.reward_models else None
        return {
            "run_folder": self.run_folder,
            "labels": len(facts.labels),
            "votes": facts.thumbs,
            "reward_model": {"version": model.version, **model.calibration.model_dump()} if model else None,
            "adapters_published": len(facts.adapters),
            "adapters_attested": sum(a.passed for a in facts.attestations),
            "adapters_refused": {a.adapter: a.reason for a in facts.attestations if not a.passed},
            "serving": facts.serving,
            "learning": self.learning,
            "parts": self.parts,
            "health": [part.as_dict() for part in self.health],
            "dead_letters": dict(facts.dead_letters),
            "ledger_balanced": self.ledger.balanced,
            "machine": self.machine,
        }

    def as_text(self) -> str:
        """For a terminal."""
        told = self.as_dict()
        model = told["reward_model"]
        model_line = "none yet"
        if model:
            tested = f"accuracy {model['accuracy']:.0%} on {model['labels']} unseen labels, ECE {model['ece']:.3f}"
            model_line = f"v{model['version']}, {tested if model['labels'] else 'not tested yet: no label came since'}"
        refused = "".join(f"\n                {name}: {reason}" for name, reason in told["adapters_refused"].items())
        return "\n".join([
            f"run             {self.run_folder}",
            f"serving         {told['serving']}",
            f"learning        {self.learning}",
            *(f"{'parts' if not number else '':<15} {line}" for number, line in enumerate(self._part_lines())),
            f"labels          {told['labels']} ({told['votes']} votes)",
            f"reward model    {model_line}",
            f"adapters        {told['adapters_published']} published, {told['adapters_attested']} attested, "
            f"{len(told['adapters_refused'])} refused{refused}",
            f"dead letters    {', '.join(f'{count} {reason}' for reason, count in told['dead_letters'].items()) or 'none'}",
            *(f"{'machine' if not number else '':<15} {sentence}" for number, sentence in enumerate(self.machine)),
            "ledger",
            str(self.ledger),
        ])  # fmt: skip

    def _part_lines(self) -> list[str]:
        """Every part's health; where none can be asked, what the ring says of its processes."""
        return health_lines(self.health) if self.health else [parts_line(self.parts)] if self.parts else []


def made(facts: LogFacts, ledger: Ledger, settings: Settings, health: Sequence[PartHealth] | None = None) -> Status:
    """The status of the run in ``run_folder``: facts from the log and from this machine. ``health``: of its parts; None: ask them."""
    run = settings.run_folder
    asked = tuple(health_of(settings) if health is None else health)
    return Status(facts, ledger, learning_of(settings, facts), known_choice(settings), states_of(run), str(run), asked)


def ledger_now(settings: Settings, since: datetime | None = None, until: datetime | None = None) -> Ledger:
    """The ledger of records that arrived from ``since`` (inclusive) to ``until`` (exclusive)."""
    return read_ledger(settings.kafka, since, until)


def follow_status(settings: Settings, show: Callable[[Status], None], stopping: threading.Event, every_s: float = 5.0) -> None:
    """Show the status repeatedly until ``stopping`` is set. The ledger reads all topics, so it is renewed only every ``LEDGER_EVERY`` times.
    Raises Unavailable when Kafka does not answer."""
    watch, turn = LogWatch(settings.kafka, settings.gated_policy), 0
    watch.start()
    ledger = read_ledger(settings.kafka)
    while not stopping.is_set():
        show(made(watch.facts, ledger, settings))
        turn += 1
        if stopping.wait(every_s):
            break
        if turn % LEDGER_EVERY == 0:
            ledger = read_ledger(settings.kafka)
    watch.stop()


def status_now(settings: Settings) -> Status:
    """Read the log to its end, count the ledger and ask the parts, all at the same time."""
    watch = LogWatch(settings.kafka, settings.gated_policy)
    watch.start()
    with ThreadPoolExecutor(2) as pool:
        ledger, health = pool.submit(ledger_now, settings), pool.submit(health_of, settings)
        watch.stop()
        return made(watch.facts, ledger.result(), settings, health.result())


def show_again(status: Status, as_json: bool) -> None:
    """Show it: on a terminal in place of the previous one, otherwise below it."""
    if as_json:
        click.echo(json.dumps(status.as_dict()))
        return
    click.clear()  # does nothing when the output is not a terminal
    click.echo(f"{status.as_text()}\n\n{datetime.now().astimezone():%H:%M:%S}, every 5 s; Ctrl-C stops")
