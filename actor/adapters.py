"""Following the adapters topic: fetch, check, load, attest, and only then take traffic. Whatever fails, what serves goes on serving."""

import json
import shutil
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import structlog

from actor.attestation import Probe, Verdict, judge, read_probes
from actor.settings import ActorSettings
from streams.artifacts import fingerprint
from streams.errors import AttestationFailed, BadArtifact, InvalidEvent, Unavailable
from streams.events import AdapterVersion, Attestation
from streams.kafka import Consumer
from streams.outbox import Outbox
from streams.site import Site
from streams.topics import ADAPTERS, ATTESTATIONS

TARGETS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"})
RETRY_S = 2.0
log = structlog.get_logger()


class Engine(Protocol):
    """What the follower asks of the server. Every method may be called from any thread and waits for its answer."""

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter under a name while requests go on. Raises BadArtifact when the engine refuses it."""

    def probe(self, name: str, probes: tuple[Probe, ...]) -> list[list[float]]:
        """The engine's logprobs of each probe's output under that adapter, in nats."""

    def go_live(self, name: str, sha256: str) -> None:
        """Let the adapter answer for the policy."""

    def drop(self, name: str) -> None:
        """Unload an adapter that never went live."""

    def sweep(self) -> list[str]:
        """Unload the adapters that nobody needs; returns their names."""


class Follower:
    """One thread that reads the topic from its beginning and keeps this replica on the newest adapter that proves itself."""

    def __init__(self, settings: ActorSettings, site: Site, engine: Engine, outbox: Outbox, replica: str) -> None:
        self._settings, self._site, self._engine, self._outbox, self._replica = settings, site, engine, outbox, replica
        self._folder = site.state / "adapters"
        self._live_version = 0
        self._waiting: dict[int, AdapterVersion] = {}
        self._fingerprint: str | None = None
        self.caught_up = threading.Event()
        """Set once the topic was read to its end and the newest adapter there was taken or refused."""
        self.over: Future[None] = Future()
        """Done when the thread has ended; holds its error if a bug ended it, so that a replica does not serve an old adapter for ever in silence."""
        self._thread = threading.Thread(target=self._run, name="adapters", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._site.metrics.set("tidemill_serving_version", 0, policy=self._site.policy)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread, which ends when the site stops."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not self._site.stopping.is_set():
                try:
                    self._follow()
                except (Unavailable, AttestationFailed) as error:  # the latter: the engine is too busy to unload or to switch
                    log.warning("adapters: waiting", error=str(error))
                    self._site.stopping.wait(RETRY_S)
        except BaseException as error:
            self.over.set_exception(error)
            raise
        self.over.set_result(None)

    def _follow(self) -> None:
        consumer = Consumer(self._site.kafka, [ADAPTERS], "actor", self._site.metrics)
        try:
            while not self._site.stopping.is_set():
                for record in consumer.poll(self._settings.poll_s):
                    self._note(record.value)
                if consumer.lag() == 0:
                    self._take_newest()
                    self.caught_up.set()
                for name in self._engine.sweep():
                    log.info("adapter unloaded", adapter=name)
                    shutil.rmtree(self._place(name), ignore_errors=True)
        finally:
            consumer.close()

    def _note(self, value: bytes | None) -> None:
        if value is None:
            return
        try:
            adapter = ADAPTERS.decode(value)
        except InvalidEvent as error:
            self._site.metrics.add("tidemill_adapters_refused_total", reason="invalid_event")
            log.warning("an adapter's event cannot be read", error=str(error))
            return
        if adapter.policy == self._site.policy and adapter.version > self._live_version:
            self._waiting[adapter.version] = adapter

    def _take_newest(self) -> None:
        """Newest first: what it skips is never loaded. An older one has its turn only when a newer one is refused."""
        tried = 0
        while self._waiting and tried < self._settings.refusals_before_waiting:
            adapter = self._waiting[max(self._waiting)]
            taken = self._take(adapter)
            del self._waiting[adapter.version]  # after, so that Unavailable leaves it for the next turn
            tried += 1
            if taken:
                break
        self._waiting.clear()

    def _take(self, adapter: AdapterVersion) -> bool:
        """Load, attest and switch. False when it was refused, for a reason that the event and the metric tell. Raises Unavailable."""
        began = time.monotonic()
        verdict, reason = None, "attested"
        try:
            folder = self._checked(adapter)
            probes = read_probes(folder)
            verdict = self._loaded_and_judged(adapter, folder, probes)
        except BadArtifact as error:
            reason = str(error)
            self._refuse(adapter, "bad_artifact", reason)
        except AttestationFailed as error:
            reason = str(error)
            self._refuse(adapter, "not_attested", reason)
        seconds = time.monotonic() - began
        passed = verdict is not None and verdict.passed
        if passed:
            self._engine.go_live(adapter.name, adapter.artifact.sha256)
            self._live_version = adapter.version
            self._site.metrics.add("tidemill_adapters_loaded_total")
            self._site.metrics.observe("tidemill_adapter_load_seconds", seconds)
            self._site.metrics.set("tidemill_serving_version", adapter.version, policy=self._site.policy)
            log.info("adapter live", adapter=adapter.name, seconds=round(seconds, 2), learner_gap=verdict and round(verdict.learner_gap, 4))
        self._outbox.put(ATTESTATIONS, Attestation(
            replica=self._replica,
            adapter=adapter.name,
            adapter_sha256=adapter.artifact.sha256,
            passed=passed,
            reason=verdict.reason if verdict else reason[:1000],
            learner_gap=verdict.learner_gap if verdict else None,
            base_gap=verdict.base_gap if verdict else None,
            load_ms=seconds * 1000,
            at=self._site.clock.now(),
        ))  # fmt: skip
        return passed

    def _checked(self, adapter: AdapterVersion) -> Path:
        """The adapter's files, fetched and held against its event. Raises BadArtifact or Unavailable."""
        self._fingerprint = self._fingerprint or fingerprint(self._site.base)
        if adapter.base_fingerprint != self._fingerprint:
            raise BadArtifact(f"{adapter.name} was trained on base {adapter.base_fingerprint[:12]}…, this replica serves {self._fingerprint[:12]}…")
        folder = self._site.artifacts.fetch(adapter.artifact, self._place(adapter.name))
        check_shape(folder, adapter, self._settings.max_rank)
        return folder

    def _loaded_and_judged(self, adapter: AdapterVersion, folder: Path, probes: tuple[Probe, ...]) -> Verdict:
        self._engine.load(adapter.name, folder)
        try:
            verdict = judge(self._engine.probe(adapter.name, probes), probes, self._settings)
        except (AttestationFailed, BadArtifact, Unavailable):
            self._engine.drop(adapter.name)
            raise
        if not verdict.passed:
            self._engine.drop(adapter.name)
            shutil.rmtree(folder, ignore_errors=True)
            self._refuse(adapter, "not_attested", verdict.reason)
        return verdict

    def _refuse(self, adapter: AdapterVersion, word: str, reason: str) -> None:
        self._site.metrics.add("tidemill_adapters_refused_total", reason=word)
        log.warning("adapter refused", adapter=adapter.name, reason=reason)

    def _place(self, name: str) -> Path:
        return self._folder / name


def check_shape(folder: Path, adapter: AdapterVersion, max_rank: int) -> None:
    """Rank and targets are those of the event, and within what this replica made room for. Raises BadArtifact."""
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        rank = config["r"]
        targets = frozenset(config.get("target_modules") or ()) | frozenset(config.get("target_parameters") or ())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtifact(f"{adapter.name}: adapter_config.json cannot be read: {error!r}") from None
    if not (folder / "adapter_model.safetensors").is_file():
        raise BadArtifact(f"{adapter.name} has no adapter_model.safetensors")
    if rank != adapter.rank or not 1 <= rank <= max_rank:
        raise BadArtifact(f"{adapter.name} has rank {rank}, its event says {adapter.rank}, actor.max_rank = {max_rank}")
    if strange := {target for target in targets if target not in TARGETS}:
        raise BadArtifact(f"{adapter.name} changes {sorted(map(str, strange))}, this replica serves LoRA on {sorted(TARGETS)} only")
