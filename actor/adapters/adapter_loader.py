"""Follows the log of adapters: fetches, checks, loads and attests each one before it serves traffic. On failure the replica serves as before.

A replica has no state of its own. It serves the newest adapter that passes attestation (``promotion.mode = "newest"``), or what
the promotions say (``"gated"``): production, the adapter on trial, and the rollback target.
"""

import math
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from queue import Queue
from typing import Protocol

import structlog
from msgspec import structs

from actor.adapters.adapter_choice import GatedAdapter, NewestAdapter
from actor.adapters.adapter_shape import check_shape
from actor.adapters.attestation import AdapterProbes, AttestationProbe, Verdict, judge, read_probes
from actor.adapters.placed_tensors import PlacedTensors, check_exported, told
from actor.adapters.request_routing import BASE, Route
from actor.settings import ActorSettings
from reward.families.base_folder import family_in
from streams.artifacts.artifact_store import fingerprint
from streams.core.errors import AttestationFailed, BadArtifact, InvalidEvent, Unavailable
from streams.core.events import AdapterVersion, Attestation, Erased, Erasure, Event
from streams.core.health import report_disk_space
from streams.core.part_context import PartContext
from streams.core.poison_records import RecordInHand
from streams.core.topics import ATTESTATIONS, BY_NAME, DEAD_LETTERS, ERASED, ERASURES
from streams.core.traces import Headers, trace_in_logs
from streams.kafka import Consumer, Record
from streams.kafka.dead_letters import letter_of
from streams.outbox.outbox import Outbox

RETRY_S = 2.0
REFUSED_FOR_S = 60.0
HANGS_S = 120.0
"""Seconds that a turn of the loop may take besides loading adapters."""
REPEAT_S = 600.0
"""Seconds between repeated attestations of a replica; much less than ``promotion.replica_memory_h``."""
log = structlog.get_logger()


class AdapterEngine(Protocol):
    """What the loader needs from the engine. Methods may be called from any thread; they block until the engine has answered."""

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter under a name while requests go on. Raises BadArtifact when the engine refuses it."""

    def placed(self, name: str, folder: Path) -> PlacedTensors:
        """Compare the tensors of a loaded adapter in the engine with the file in its folder."""

    def probe(self, name: str | None, probes: tuple[AttestationProbe, ...]) -> list[list[float]]:
        """The engine's logprobs of each probe's output under that adapter, in nats; None: under the base."""

    def add(self, name: str, sha256: str) -> None:
        """Allow requests for an attested adapter by its version."""

    def route(self, route: Route) -> None:
        """Switch to this route for the policy's requests."""

    def drop(self, name: str) -> None:
        """Unload an adapter that was not attested."""

    def unload_idle(self) -> list[str]:
        """Unload adapters that are no longer needed. Returns their names."""


class AdapterLoader:
    """One thread that reads the log from its beginning and keeps this replica's adapters in line with it."""

    def __init__(self, settings: ActorSettings, context: PartContext, engine: AdapterEngine, outbox: Outbox, replica: str, gated: bool = False,
                 erase_person: Callable[[Erasure], int] = lambda _: 0) -> None:  # fmt: skip
        """``erase_person`` removes what this replica remembers of a person, and returns how much that was."""
        self._settings, self._context, self._engine, self._outbox, self._replica = settings, context, engine, outbox, replica
        self._folder, self._erase_person = context.state / "adapters", erase_person
        self._fingerprint: str | None = None
        self._family = family_in(context.base)
        self._route = Route()
        self._loaded: dict[str, AdapterVersion] = {}
        self._reported_s = self._repeated_s = time.monotonic()
        self._proofs: dict[str, Attestation] = {}
        self._adapters: dict[str, AdapterVersion] = {}
        self._requested: Queue[tuple[str, Future[bool]]] = Queue()
        self._places: dict[str, Record] = {}
        """The records that told of the adapters, without their values."""
        self._in_hand = RecordInHand(context.state / "adapters.in-hand")
        self._traced: dict[str, Headers] = {}
        """Trace contexts of the adapters on the log."""
        self._given: dict[str, str] = {}
        """SHA-256 of the adapter that the engine first loaded under each name."""
        self._refused_s: dict[str, float] = {}
        """When each name was last refused."""
        self._chooser: NewestAdapter | GatedAdapter = (
            GatedAdapter(context.policy, context.clock, settings.load_timeout_s)
            if gated
            else NewestAdapter(context.policy, settings.refusals_before_waiting)
        )
        self.caught_up = threading.Event()
        """Set once the log has been read to its end and the chosen adapters are attested or refused."""
        self.ended: Future[None] = Future()
        """Done when the thread has ended. Holds the error of a bug, so that the replica fails instead of serving an old adapter for ever."""
        self._thread = threading.Thread(target=self._run, name="adapters", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._context.metrics.set("tidemill_serving_version", 0, policy=self._context.policy)
        self._thread.start()

    def request_load(self, name: str) -> Future[bool]:
        """Request a version by its name: it is loaded and attested like any other. False when the log does not have it, or when it was refused.
        May be called from any thread."""
        asked: Future[bool] = Future()
        if name in self._adapters:
            self._requested.put((name, asked))
        else:
            asked.set_result(False)
        return asked

    def join(self, timeout_s: float, told_to_stop: bool = True) -> None:
        """Wait for the thread, which ends when the part is stopped. An adapter that is being loaded then is not to blame, unless the engine died."""
        self._thread.join(timeout_s)
        if told_to_stop and not (self.ended.done() and self.ended.exception()):
            self._in_hand.put_down()

    def _run(self) -> None:
        try:
            while not self._context.stopping.is_set():
                self._beat()
                try:
                    self._follow()
                except (Unavailable, AttestationFailed) as error:  # the latter: the engine is too busy to unload or switch
                    log.warning("the adapter loader waits", error=str(error))
                    self._context.stopping.wait(RETRY_S)
        except BaseException as error:
            self.ended.set_exception(error)
            raise
        self.ended.set_result(None)

    def _follow(self) -> None:
        consumer = Consumer(self._context.kafka, [*self._chooser.topics, ERASURES], "actor", self._context.metrics)
        try:
            while not self._context.stopping.is_set():
                self._beat()
                for record in consumer.poll(0.0 if self._requested.qsize() else self._settings.poll_s):
                    self._note(record)
                if consumer.measure_lag() == 0:
                    self._apply_route()
                    self.caught_up.set()
                    self._load_requested()
                self._report_age_and_cost()
                self._repeat_attestation()
                for name in self._engine.unload_idle():
                    log.info("adapter unloaded", adapter=name)
                    self._loaded.pop(name, None)
                    self._proofs.pop(name, None)
                    shutil.rmtree(self._adapter_folder(name), ignore_errors=True)
        finally:
            consumer.close()

    def _beat(self) -> None:
        """A turn may load and attest as many adapters as fit the engine, each in ``load_timeout_s``."""
        self._context.health.heartbeat("adapters", HANGS_S + self._settings.load_timeout_s * self._settings.max_loras)

    def _note(self, record: Record) -> None:
        if record.value is None:
            return
        try:
            with self._working_on(record):
                self._take(BY_NAME[record.topic].decode(record.value), record)
        except InvalidEvent as error:
            self._context.metrics.add("tidemill_adapters_refused_total", reason="invalid_event")
            log.warning("an event cannot be read", topic=record.topic, error=str(error))
            if error.reason == "deadly" and self._in_hand.first_told(record.topic, record.partition, record.offset):
                self._outbox.put(DEAD_LETTERS, letter_of(record, error, "actor", self._context.clock.now()))

    def _working_on(self, record: Record, loading: bool = False) -> RecordInHand:
        """Noting an adapter and loading it are told apart: what kills by being loaded is known, and refused. An engine that dies ends the replica."""
        what = f"{record.topic} loaded" if loading else record.topic
        return self._in_hand.working_on(what, record.partition, record.offset, "the adapter loader", survives=not loading)

    def _take(self, event: Event, record: Record) -> None:
        if isinstance(event, Erasure):
            self._erase(event)
            return
        if isinstance(event, AdapterVersion) and event.policy == self._context.policy:
            self._adapters[event.name] = event
            self._places[event.name] = structs.replace(record, value=None)
            if record.headers:
                self._traced[event.name] = record.headers
        self._chooser.note(event)

    def _erase(self, erasure: Erasure) -> None:
        """Erase a person here. Reported on the log only after this replica has caught up: it never knew what happened before its start."""
        if not erasure.people:
            log.error("an erasure was made with a key that this replica does not have: it can neither act nor report", key_id=erasure.key_id)
            return
        removed = self._erase_person(erasure)
        if self.caught_up.is_set():
            now = self._context.clock.now()
            self._outbox.put(ERASED, Erased(person=erasure.person, part="actor", where=self._replica, removed={"recent episodes": removed},
                                            erasure_at=erasure.at, at=now))  # fmt: skip

    def _load_requested(self) -> None:
        """Load the version that was requested first. One per turn, so that production never waits for several of them."""
        if self._requested.empty():
            return
        name, asked = self._requested.get()
        taken = False
        try:
            taken = self._ensure_attested(self._adapters[name], by_name=True)
        finally:
            if asked.set_running_or_notify_cancel():
                asked.set_result(taken)

    def _apply_route(self) -> None:
        """Load and attest the chosen adapters, and route requests to them."""
        route = self._chooser.choose(self._route, self._ensure_attested)
        if route == self._route:
            return
        self._engine.route(route)
        before, self._route = self._route, route
        if route.production != before.production:
            version = int(route.production.rpartition("@")[2]) if route.production else 0
            self._context.metrics.set("tidemill_serving_version", version, policy=self._context.policy)
            with trace_in_logs(self._traced.get(route.production or BASE, ())):
                log.info("adapter live", adapter=route.production or BASE)
            self._observe_since("tidemill_promotion_served_seconds", self._chooser.moved_at)
            if (adapter := self._loaded.get(route.production or BASE)) is not None:
                self._observe_since("tidemill_thumb_to_served_seconds", adapter.newest_feedback_at)
        self._context.metrics.set("tidemill_canary_share_ratio", route.canary_share, policy=self._context.policy)

    def _observe_since(self, name: str, at: datetime | None) -> None:
        """Observe the time since ``at`` in a histogram. Not while a new replica reads an old log, whose times would only measure the start."""
        if at is not None and self.caught_up.is_set():
            self._context.metrics.observe(name, max(0.0, (self._context.clock.now() - at).total_seconds()))

    def _report_age_and_cost(self) -> None:
        """Update the metrics that grow with time: the age of production, and the cost of serving."""
        metrics, now_s, adapter = self._context.metrics, time.monotonic(), self._loaded.get(self._route.production or BASE)
        age_s = (self._context.clock.now() - adapter.created_at).total_seconds() if adapter else 0.0
        metrics.set("tidemill_policy_age_seconds", max(0.0, age_s), policy=self._context.policy)
        report_disk_space(metrics, self._context.state, "actor")
        metrics.add("tidemill_actor_device_seconds_total", now_s - self._reported_s)  # one device: the engine is not distributed
        self._reported_s = now_s

    def _repeat_attestation(self) -> None:
        """Publish the attestation of production again from time to time: a silent replica counts as gone."""
        proof = self._proofs.get(self._route.production or BASE)
        if proof is not None and time.monotonic() - self._repeated_s >= REPEAT_S:
            self._outbox.put(ATTESTATIONS, proof.model_copy(update={"at": self._context.clock.now()}))
            self._repeated_s = time.monotonic()

    def _ensure_attested(self, adapter: AdapterVersion, by_name: bool = False) -> bool:
        """Load and attest the adapter unless it is attested already. A refused one is tried again after a minute: the engine may have been busy."""
        if adapter.name in self._loaded:
            return True
        if time.monotonic() - self._refused_s.get(adapter.name, float("-inf")) < REFUSED_FOR_S:
            return False
        with trace_in_logs(self._traced.get(adapter.name, ())):
            taken = self._load_and_attest(adapter, by_name)
        if taken:
            self._loaded[adapter.name] = adapter
            return True
        self._refused_s[adapter.name] = time.monotonic()
        return False

    def _load_and_attest(self, adapter: AdapterVersion, by_name: bool) -> bool:
        """Load and attest. ``by_name``: a client asked for this version, possibly long after its publication. False when it was refused; event and
        metric give the reason. Raises Unavailable."""
        began, began_at = time.monotonic(), self._context.clock.now()
        try:
            with self._working_on(self._places[adapter.name], loading=True):
                folder = self._checked(adapter)
                verdict = self._load_and_compare(adapter, folder, read_probes(folder))
            if not verdict.passed:
                self._refuse(adapter, "not_attested", verdict.reason)
        except InvalidEvent as error:
            verdict = Verdict("refused", str(error)[:1000])
            self._refuse(adapter, error.reason, verdict.reason)
        except (BadArtifact, AttestationFailed) as error:
            verdict = Verdict("refused", str(error)[:1000])
            self._refuse(adapter, "bad_artifact" if isinstance(error, BadArtifact) else "not_attested", verdict.reason)
        seconds = time.monotonic() - began
        if verdict.passed:
            self._engine.add(adapter.name, adapter.artifact.sha256)
            self._context.metrics.add("tidemill_adapters_loaded_total")
            self._context.metrics.observe("tidemill_adapter_load_seconds", seconds)
            if not by_name:
                self._observe_since("tidemill_adapter_to_attested_seconds", adapter.created_at)
            log.info("adapter attested", adapter=adapter.name, by=verdict.proof, seconds=round(seconds, 2), learner_gap=round(verdict.learner_gap, 4),
                     noise_nats=round(verdict.noise_nats, 4), **({} if verdict.proof == "answers" else {"reason": verdict.reason}))  # fmt: skip
        event = self._attestation(adapter, verdict, seconds)
        headers = self._context.traces.record_span("load", began_at, event.at, [self._traced.get(adapter.name, ())], adapter=adapter.name)
        self._outbox.put(ATTESTATIONS, event, headers)
        if verdict.passed:
            self._proofs[adapter.name] = event
        return verdict.passed

    def _attestation(self, adapter: AdapterVersion, verdict: Verdict, seconds: float) -> Attestation:
        share = verdict.share
        return Attestation(
            replica=self._replica,
            adapter=adapter.name,
            adapter_sha256=adapter.artifact.sha256,
            passed=verdict.passed,
            reason=verdict.reason,
            proof=verdict.proof,
            learner_gap=_finite(verdict.learner_gap),
            base_gap=_finite(verdict.base_gap),
            share=_finite(share.estimate) if share else None,
            share_low=_finite(share.low) if share else None,
            share_high=_finite(share.high) if share else None,
            noise_nats=_finite(verdict.noise_nats),
            load_ms=seconds * 1000,
            at=self._context.clock.now(),
        )

    def _checked(self, adapter: AdapterVersion) -> Path:
        """Fetch the adapter's files and check them against its event. Raises BadArtifact or Unavailable."""
        self._fingerprint = self._fingerprint or fingerprint(self._context.base)
        if adapter.base_fingerprint != self._fingerprint:
            raise BadArtifact(f"{adapter.name} was trained on base {adapter.base_fingerprint[:12]}…, this replica serves {self._fingerprint[:12]}…")
        folder = self._context.artifacts.fetch(adapter.artifact, self._adapter_folder(adapter.name))
        check_shape(folder, adapter, self._family, self._settings.max_rank)
        return folder

    def _load_and_compare(self, adapter: AdapterVersion, folder: Path, known: AdapterProbes) -> Verdict:
        if self._given.setdefault(adapter.name, adapter.artifact.sha256) != adapter.artifact.sha256:  # vLLM keys its prefix cache by the name
            raise BadArtifact(f"{adapter.name} was loaded here before with other content: publish this one under a new version")
        check_exported(folder, known.tensors)
        self._engine.load(adapter.name, folder)
        try:
            verdict = self._compare(adapter, folder, known)
        except (AttestationFailed, BadArtifact, Unavailable):
            self._engine.drop(adapter.name)
            raise
        if not verdict.passed:
            self._engine.drop(adapter.name)
            shutil.rmtree(folder, ignore_errors=True)
        return verdict

    def _compare(self, adapter: AdapterVersion, folder: Path, known: AdapterProbes) -> Verdict:
        """Check that the engine holds all its tensors, and compare its log-probabilities on the probes. When noise hides a small step in the
        log-probabilities, the tensors are proof enough, and the verdict says so."""
        placed = self._engine.placed(adapter.name, folder)
        if placed.missing:
            reason = f"{len(placed.missing)} of {len(placed.missing) + len(placed.same)} tensors did not take effect here: {told(placed.missing)}"
            raise AttestationFailed(reason)
        base, own = self._engine.probe(None, known.probes), self._engine.probe(adapter.name, known.probes)
        in_place = placed.complete and bool(known.tensors)
        verdict = judge(own, base, known, self._settings, in_place)
        if verdict.outcome == "cannot tell" and in_place:
            return replace(verdict, proof="tensors", reason=f"all {len(placed.same)} tensors are in place; {verdict.reason}")
        return verdict

    def _refuse(self, adapter: AdapterVersion, word: str, reason: str) -> None:
        self._context.metrics.add("tidemill_adapters_refused_total", reason=word)
        log.warning("adapter refused", adapter=adapter.name, reason=reason)

    def _adapter_folder(self, name: str) -> Path:
        return self._folder / name


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
