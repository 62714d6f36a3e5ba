"""The main job: the ring turns once with simulated people, within a time budget, and a report says what came of it."""

import asyncio
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from types import FrameType

from infra.demo import skills_kept as skills
from infra.demo.broken_arrows import ArrowWatch, RingFlow
from infra.demo.demo_talk import Talk
from infra.demo.held_out_exam import Examiners, PairsAsked
from infra.demo.machine_facts import MachineFacts, step_s
from infra.demo.progress import Now, Progress
from infra.demo.report import Report, write_json
from infra.demo.report_page import write_html
from infra.demo.stopping_rule import NOT_LEARNING_S, REPORT_S, TimePlan
from infra.local.local_ring import Ring, lock_run
from infra.machine.step_prediction import predicted_step, sized_for
from infra.operate.log_watch import LogWatch
from infra.operate.ring_status import ledger_now
from infra.settings.config import Settings, load
from infra.simulated_people.simulated_questions import held_out_questions
from infra.simulated_people.simulated_talk import Answer, SimulatedPeople, TalkTally
from streams.core.errors import ConfigError, Unavailable
from streams.core.events import AdapterVersion


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: stop cleanly, whatever was being done."""


def run_demo(
    minutes: float, at_most: float, base: str | None, seed: int | None, keep: Path | None, config: str | None, overrides: tuple[str, ...]
) -> int:
    """The command ``tidemill demo``: returns its exit status, 1 when the ring is broken."""
    if at_most < minutes:
        raise ConfigError(f"--at-most {at_most:g} is less than --minutes {minutes:g}: allow at least as many")
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    started_s, machine = time.monotonic(), MachineFacts()
    machine.look()
    folder = keep or Path("runs/demo")
    chosen = [f"run_folder={folder}", *([f"policy.base={base}"] if base else []), *seed_overrides(seed)]
    settings = load(config or ("tiny" if base == "tiny" else "demo"), (*chosen, *overrides))
    _make_room(folder, kept=keep is not None)
    progress = Progress()
    try:
        learning_minutes = max(1.0, minutes - NOT_LEARNING_S / 60)
        with progress, Ring(settings, progress.say, sizing=partial(sized_for, minutes=learning_minutes)) as ring:
            step = predicted_step(ring.settings, ring.rates) if ring.rates is not None else None
            machine.predicted_step_s = None if step is None else step.total_s
            plan = TimePlan(started_s + minutes * 60, started_s + at_most * 60, machine.predicted_step_s)
            progress.say(plan.forecast(started_s))
            report = Demo(ring, progress, plan, machine, started_s).run()
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
    return 1 if report.verdict == "broken" else 0


class Demo:
    """The stages in order."""

    def __init__(self, ring: Ring, progress: Progress, plan: TimePlan, machine: MachineFacts, started_s: float) -> None:
        self._ring, self._progress, self._plan, self._machine, self._started_s = ring, progress, plan, machine, started_s
        people = ring.settings.people
        self._watch = LogWatch(ring.settings.kafka, ring.settings.gated_policy)
        self._examiners = Examiners(people, ring.base_url, ring.settings.policy.name)
        self._questions = held_out_questions(people.held_out_questions, people.seed)
        self._pairs = PairsAsked(started_s=started_s)
        self._flow = RingFlow(ring.settings, ArrowWatch(plan.predicted_step_s))
        self._now = Now()
        self._samples: list[tuple[float, float, str]] = []
        """Seconds since the start, true approval over the last answers, what served."""

    def run(self) -> Report:
        """Turn the ring once."""
        ring, kept = self._ring, None
        self._watch.start()
        self._stage("starting vLLM")
        ring.await_actor(max(60.0, self._plan.at_most_s - time.monotonic() - 60), lambda: self._tick(None))
        talk = Talk(ring, self._watch.facts, self._examiners, self._pairs)
        try:
            self._stage("people talk")
            began_s = time.monotonic()
            before = self._exam(of_base=True, tally=talk.tally)
            exam_s = time.monotonic() - began_s
            broken = self._learn(talk.tally, exam_s)
        finally:
            talk.stop()
        after: list[Answer] = []
        if broken is None:
            self._stage("stopping the learner")
            ring.processes.stop("learner", timeout_s=30.0)
            self._await_the_last_adapter()
            self._stage("asking the adapter")
            after = self._exam(of_base=False, tally=None)
            self._pairs.take(before, after)
            kept = skills.measure(ring.base_url, ring.settings.policy.name)
        self._stage("closing the books")
        return self._report(before, after, talk.tally, kept, broken)

    def _learn(self, tally: TalkTally, exam_s: float) -> str | None:
        """People talk and the learner steps until the rise is shown and the time is used, or the time is up. What is broken, if anything is."""
        facts, published, told = self._watch.facts, 0, False
        while True:
            if facts.adapters and self._now.stage == "people talk":
                self._stage("learning")
            self._tick(tally)
            if (arrow := self._flow.broken(facts, tally)) is not None:
                return f"{arrow}; see {self._ring.settings.run_folder / 'logs' / arrow.part}.log"
            shown, now_s = self._pairs.shown_with is not None, time.monotonic()
            between_s = (facts.adapters[-1].created_at - facts.adapters[-2].created_at).total_seconds() if len(facts.adapters) > 1 else 15.0
            if self._plan.learned_enough(now_s, shown, exam_s, between_s, len(facts.adapters) > published):
                return None
            published = len(facts.adapters)
            if not shown and not told and now_s > self._plan.aim_s - exam_s - REPORT_S:
                told = True
                most = (self._plan.at_most_s - self._started_s) / 60
                self._progress.say(f"the rise is not shown yet ({self._pairs.rise}): going on until it is, for {most:.0f} minutes at most")
            time.sleep(0.5)

    def _exam(self, of_base: bool, tally: TalkTally | None) -> list[Answer]:
        """The held-out questions, while the parts are looked after."""
        pool = ThreadPoolExecutor(1)
        asked = pool.submit(self._examiners.ask, self._questions, of_base)
        try:
            while not asked.done():
                self._tick(tally)
                wait([asked], timeout=0.5)
            return asked.result()
        finally:
            pool.shutdown(wait=False)  # who is told to stop does not wait for the answers

    def _await_the_last_adapter(self) -> None:
        """The learner is done: wait until its last adapter is attested or refused."""
        facts, patience_s = self._watch.facts, time.monotonic() + 30
        while facts.adapters and time.monotonic() < patience_s:
            if any(attestation.adapter == facts.adapters[-1].name for attestation in facts.attestations):
                return
            self._tick(None)
            time.sleep(0.2)

    def _report(self, before: list[Answer], after: list[Answer], tally: TalkTally, kept: skills.Skills | None, broken: str | None) -> Report:
        ring, settled_by = self._ring, time.monotonic() + REPORT_S
        ledger = ledger_now(ring.settings)
        while not ledger.balanced and time.monotonic() < settled_by:
            time.sleep(1.0)
            ledger = ledger_now(ring.settings)
        self._watch.stop()
        ring.check()
        self._machine.cpu_s = ring.cpu_s
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
            machine=self._machine,
            pairs=self._pairs,
            skills=kept,
            broken_arrow=broken,
        )

    def _tick(self, tally: TalkTally | None) -> None:
        """Look after the parts and show where things stand."""
        self._ring.check()
        facts, now = self._watch.facts, self._now
        now.left_s, now.thumbs, now.serving, now.rise = self._left_s(), facts.thumbs, facts.serving, self._pairs.rise
        if tally is not None:
            now.answers, now.approval = tally.answers, tally.recent_approval if tally.recent else None
            if tally.recent:
                self._samples.append((time.monotonic() - self._started_s, tally.recent_approval, facts.serving))
                self._machine.look()
        if facts.reward_models:
            now.reward_version, now.reward_auc = facts.reward_models[-1].version, facts.reward_models[-1].calibration.auc
        if facts.adapters:
            newest = facts.adapters[-1]
            now.step, now.tokens_per_s = newest.step, _tokens_per_s(newest)
            now.lag_s = (newest.created_at - newest.newest_feedback_at).total_seconds() if newest.newest_feedback_at else None
        self._progress.show(now)

    def _stage(self, stage: str) -> None:
        self._now.stage = stage
        self._now.left_s = self._left_s()
        self._progress.show(self._now)

    def _left_s(self) -> float:
        """To the aim; once that is over, to the most."""
        left_s = self._plan.aim_s - time.monotonic()
        return left_s if left_s > 0 else self._plan.at_most_s - time.monotonic()


def _tokens_per_s(adapter: AdapterVersion) -> float | None:
    """Tokens sampled and trained over the time of the step."""
    seconds = step_s(adapter)
    return (adapter.metrics["output_tokens"] + adapter.metrics["train_tokens"]) / seconds if seconds else None


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
