"""The main job: the ring turns once with simulated people, within a time budget, and a report says what came of it."""

import asyncio
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from infra.demo import skills_kept as skills
from infra.demo.progress import Now, Progress
from infra.demo.report import Report, write_json
from infra.demo.report_page import write_html
from infra.demo.simulated_people import SimulatedQuestion, held_out_questions
from infra.demo.simulated_talk import Answer, SimulatedPeople, TalkTally
from infra.local.local_ring import Ring, lock_run
from infra.operate.log_watch import LogWatch
from infra.operate.ring_status import ledger_now
from infra.settings.config import Settings, load
from streams.core.errors import ConfigError, Unavailable

REPORT_S = 25.0
"""Kept back for settling the ledger, plotting, and stopping every process."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: stop cleanly, whatever was being done."""


def run_demo(minutes: float, base: str | None, seed: int | None, keep: Path | None, config: str | None, overrides: tuple[str, ...]) -> int:
    """The command ``tidemill demo``: returns its exit status."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    deadline_s = time.monotonic() + minutes * 60
    folder = keep or Path("runs/demo")
    chosen = [f"run_folder={folder}", *([f"policy.base={base}"] if base else []), *seed_overrides(seed)]
    settings = load(config or ("tiny" if base == "tiny" else "demo"), (*chosen, *overrides))
    _make_room(folder, kept=keep is not None)
    progress = Progress()
    try:
        with progress, Ring(settings, progress.say) as ring:
            report = Demo(ring, progress, deadline_s).run()
    except (Interrupted, KeyboardInterrupt):
        print("tidemill: stopped on request; nothing is left running", file=sys.stderr)
        return 130
    finally:
        if keep is None:
            for part in ("broker", "state", "artifacts", "lake"):
                shutil.rmtree(folder / part, ignore_errors=True)
    write_json(report, folder / "report.json")
    write_html(report, folder / "report.html")
    print(report.as_text())
    print(f"\nThe same with plots: {folder / 'report.html'}")
    return 0 if report.closed else 1


@dataclass
class Talk:
    """Simulated people who talk in a thread of their own."""

    people: SimulatedPeople
    thread: threading.Thread
    stopping: threading.Event


class Demo:
    """The stages in order. Each knows how much of the budget it may use."""

    def __init__(self, ring: Ring, progress: Progress, deadline_s: float) -> None:
        self._ring, self._progress, self._deadline_s = ring, progress, deadline_s
        self._started_s = time.monotonic()
        self._watch = LogWatch(ring.settings.kafka, ring.settings.gated_policy)
        self._now = Now()
        self._samples: list[tuple[float, float, str]] = []
        """Seconds since the start, true approval over the last answers, what served."""

    def run(self) -> Report:
        """Turn the ring once."""
        ring, people = self._ring, self._ring.settings.people
        self._watch.start()
        self._stage("starting vLLM")
        ring.await_actor(max(60.0, self._left_s() - 60), lambda: self._tick(None))
        questions = held_out_questions(people.held_out_questions, people.seed)
        self._stage("asking the base")
        began_s = time.monotonic()
        before = self._ask(questions)
        asking_s = time.monotonic() - began_s
        talk = self._start_talking()
        self._stage("people talk")
        try:
            self._learn(talk.people.tally, asking_s)
            self._stage("learner finishes its step")
            ring.processes.stop("learner", timeout_s=max(20.0, self._left_s() - 2 * asking_s - REPORT_S))
        finally:
            talk.stopping.set()
            talk.thread.join(timeout=60)
        self._await_the_last_adapter()
        self._stage("asking the adapter")
        after = self._ask(questions)
        kept = skills.measure(ring.base_url, ring.settings.policy.name)
        self._stage("closing the books")
        return self._report(before, after, talk.people.tally, kept)

    def _learn(self, tally: TalkTally, asking_s: float) -> None:
        """People talk and the learner steps until what is left is needed for the rest."""
        facts = self._watch.facts
        while True:
            step_s = (facts.adapters[-1].created_at - facts.adapters[-2].created_at).total_seconds() if len(facts.adapters) > 1 else 15.0
            if self._left_s() < 1.5 * asking_s + step_s + REPORT_S:
                return
            if facts.adapters and self._now.stage == "people talk":
                self._stage("learning")
            self._tick(tally)
            time.sleep(0.5)

    def _start_talking(self) -> Talk:
        settings = self._ring.settings.people
        people = SimulatedPeople(settings, self._ring.base_url, self._ring.settings.policy.name)
        stopping = threading.Event()

        next_round_s = 0.0

        def at_once() -> int:
            nonlocal next_round_s
            if not self._watch.facts.reward_models or not settings.round_every_s:
                return settings.at_once
            if time.monotonic() < next_round_s:
                return 0
            next_round_s = time.monotonic() + settings.round_every_s
            return settings.at_once

        async def talk() -> None:
            await people.talk(at_once, stopping.is_set)
            await people.close()

        thread = threading.Thread(target=lambda: asyncio.run(talk()), name="simulated people", daemon=True)
        thread.start()
        return Talk(people, thread, stopping)

    def _ask(self, questions: list[SimulatedQuestion]) -> list[Answer]:
        settings = self._ring.settings

        async def ask() -> list[Answer]:
            people = SimulatedPeople(settings.people, self._ring.base_url, settings.policy.name)
            try:
                return await people.ask_all(questions, max(settings.people.at_once, 16))
            finally:
                await people.close()

        return asyncio.run(ask())

    def _await_the_last_adapter(self) -> None:
        """The learner is done: wait until its last adapter is attested or refused."""
        facts, patience_s = self._watch.facts, time.monotonic() + 30
        while facts.adapters and time.monotonic() < patience_s:
            if any(attestation.adapter == facts.adapters[-1].name for attestation in facts.attestations):
                return
            self._tick(None)
            time.sleep(0.2)

    def _report(self, before: list[Answer], after: list[Answer], tally: TalkTally, kept: skills.Skills | None) -> Report:
        ring, settled_by = self._ring, time.monotonic() + REPORT_S
        ledger = ledger_now(ring.settings)
        while not ledger.balanced and time.monotonic() < settled_by:
            time.sleep(1.0)
            ledger = ledger_now(ring.settings)
        self._watch.stop()
        ring.check()
        return Report(
            settings=ring.settings,
            seconds=time.monotonic() - self._started_s,
            before=before,
            after=after,
            tally=tally,
            facts=self._watch.facts,
            ledger=ledger,
            samples=self._samples,
            peak_memory_mib=ring.peak_memory_mib,
            restarts=ring.processes.restarts,
            skills=kept,
        )

    def _tick(self, tally: TalkTally | None) -> None:
        """Look after the parts and show where things stand."""
        self._ring.check()
        facts, now = self._watch.facts, self._now
        now.left_s, now.thumbs, now.serving = self._left_s(), facts.thumbs, facts.serving
        if tally is not None:
            now.answers, now.approval = tally.answers, tally.recent_approval if tally.recent else None
            if tally.recent:
                self._samples.append((time.monotonic() - self._started_s, tally.recent_approval, facts.serving))
        if facts.reward_models:
            now.reward_version, now.reward_accuracy = facts.reward_models[-1].version, facts.reward_models[-1].calibration.accuracy
        if facts.adapters:
            newest = facts.adapters[-1]
            now.step, now.tokens_per_s = newest.step, _tokens_per_s(newest.metrics)
            now.lag_s = (newest.created_at - newest.newest_feedback_at).total_seconds() if newest.newest_feedback_at else None
        self._progress.show(now)

    def _stage(self, stage: str) -> None:
        self._now.stage = stage
        self._now.left_s = self._left_s()
        self._progress.show(self._now)

    def _left_s(self) -> float:
        return self._deadline_s - time.monotonic()


def _tokens_per_s(metrics: dict[str, float]) -> float | None:
    """Tokens sampled and trained over the time of the step."""
    seconds = sum(metrics.get(f"{phase}_s", 0.0) for phase in ("rollout", "score", "train"))
    return (metrics["output_tokens"] + metrics["train_tokens"]) / seconds if seconds else None


def seed_overrides(seed: int | None) -> list[str]:
    """Everything random follows from it: who asks what and how they vote, and what the learner samples."""
    return [] if seed is None else [f"people.seed={seed}", f"learner.seed={seed}"]


def _make_room(folder: Path, kept: bool) -> None:
    """A fresh folder: one that somebody named is never emptied, our own is, unless a run is in it."""
    if not folder.exists():
        return
    if kept:
        if any(folder.iterdir()):
            raise ConfigError(f"--keep {folder}: the folder is not empty; name a new one")
        return
    lock_run(folder).close()
    shutil.rmtree(folder)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough: what follows is the clean-up
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Interrupted


def simulate_for(settings: Settings, base_url: str, seconds: float, api_key: str = "none") -> TalkTally:
    """Simulated people talk to the actor at ``base_url`` for so long. Raises Unavailable when it answers nobody."""

    async def talk() -> TalkTally:
        people = SimulatedPeople(settings.people, base_url, settings.policy.name, api_key)
        until_s = time.monotonic() + seconds
        try:
            await people.talk(lambda: settings.people.at_once, lambda: time.monotonic() > until_s)
        finally:
            await people.close()
        return people.tally

    tally = asyncio.run(talk())
    if not tally.answers:
        raise Unavailable(f"nobody got an answer from {base_url}: {tally.failures[-1] if tally.failures else 'no time'}")
    return tally
