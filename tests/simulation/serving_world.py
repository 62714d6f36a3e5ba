"""Promoters and replicas on one simulated log: killed, started anew, and never of one clock. Engines are imitated, and moves are drawn."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from actor.adapters.adapter_loader import AdapterLoader
from actor.promotion.promoter import Promoter
from actor.promotion.promotion_evidence import PromotionEvidence
from actor.promotion.promotion_settings import PromotionSettings
from actor.promotion.promotion_stages import AdapterStanding, PromotionMove, Trial
from actor.settings import ActorSettings
from streams.artifacts.artifact_store import ArtifactStore, fingerprint
from streams.core.errors import BadArtifact, Unavailable
from streams.core.events import AdapterVersion, Event, Promotion, new_id
from streams.core.part_context import PartContext
from streams.core.topics import ADAPTERS, PROMOTIONS, Topic
from streams.kafka import Producer
from tests.support.simulated_clients import at, install, producer
from tests.support.simulated_log import Killed, SimulatedClock, SimulatedLog
from tests.unit.actor.test_adapter_loader import CONFIG, PROBE, WEIGHTS, Engine

BEGIN = datetime(2026, 3, 2, 9, tzinfo=UTC)
PROMOTERS, REPLICAS = ("promoter-a", "promoter-b"), ("replica-a", "replica-b")
SETTINGS = PromotionSettings(mode="gated", cron="0 * * * *", watch_h=0)


class DrawnTrials:
    """Stands for gates, shadow and canary, which ask engines and people: goes on, fails, or has not decided yet. Chance decides."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def next(self, observed: PromotionEvidence, trial: Trial, now: datetime) -> PromotionMove | None:
        onward = {"candidate": "shadow", "shadow": "canary", "canary": "promoted"}[trial.stage]
        move = self._chance.choice((onward, onward, onward, "rejected", None))
        return None if move is None else PromotionMove(move, "drawn", canary_share=0.1 if move == "canary" else None)


class SimulatedEngine(Engine):
    """An engine that refuses some adapters; its loader's loop ends after so many turns."""

    def __init__(self, refuses: Callable[[str], bool]) -> None:
        super().__init__()
        self._refuses_name, self.turns_left = refuses, 0
        self.stop: Callable[[], None] = lambda: None

    def load(self, name: str, folder: Path) -> None:
        if self._refuses_name(name):
            raise BadArtifact("this replica cannot load it")
        super().load(name, folder)

    def unload_idle(self) -> list[str]:
        self.turns_left -= 1
        if self.turns_left <= 0:
            self.stop()
        return []


class DirectOutbox:
    """Publishes at once: the outbox's own failures are tested elsewhere."""

    def __init__(self, sending: Producer) -> None:
        self._sending = sending

    def put(self, topic: Topic[Any], event: Event, headers: Any = ()) -> bool:
        self._sending.publish(topic, event)
        return True


@dataclass
class Replica:
    """A replica's process: its loader, and what it served, one after the other."""

    loader: AdapterLoader
    engine: SimulatedEngine
    context: PartContext


@dataclass
class ServingWorld:
    """A log, promoters and replicas."""

    patch: pytest.MonkeyPatch
    folder: Path
    seed: int
    gated: bool
    promoters: dict[str, Promoter] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    served: dict[str, list[list[str | None]]] = field(default_factory=lambda: {name: [] for name in REPLICAS})
    """By replica and process, what was production there, one after the other."""
    bad: set[str] = field(default_factory=set)
    """Adapters that no replica can load."""

    def __post_init__(self) -> None:
        self.planned: dict[str, int] = {}
        self.chance, self.clock = random.Random(self.seed), SimulatedClock(BEGIN)
        self.log = SimulatedLog(clock=self.clock, chance=self.chance, interrupt=self._interrupt)
        install(self.patch, self.log)
        self.base = self.folder / "base"
        self.base.mkdir()
        (self.base / "config.json").write_text("{}")
        self.store, self.learner = ArtifactStore(str(self.folder / "store")), producer("learner")
        self.published = 0

    def publish(self, good: bool) -> None:
        """The learner publishes the next version."""
        self.published += 1
        source = self.folder / f"made-{self.published}"
        source.mkdir()
        (source / "adapter_config.json").write_text(json.dumps(CONFIG))
        (source / "adapter_model.safetensors").write_bytes(WEIGHTS)
        (source / "probes.json").write_text(json.dumps({"probes": [PROBE], "tensors": {}}))
        adapter = AdapterVersion(policy="default", version=self.published, artifact=self.store.put(source, f"adapters/{self.published}"), rank=8,
                                 step=self.published, base_fingerprint=fingerprint(self.base), targets=("q_proj",), reward_model_version=1,
                                 created_at=self.clock.now())  # fmt: skip
        if not good:
            self.bad.add(adapter.name)
        self.learner.publish(ADAPTERS, adapter)

    def by_hand(self, move: str, version: int) -> None:
        """An operator moves an adapter, rightly or wrongly."""
        event = {"promotion_id": new_id("pr"), "policy": "default", "adapter": f"default@{version}", "move": move, "reason": "by hand",
                 "by": "operator", "at": self.clock.now()}  # fmt: skip
        self.learner.publish(PROMOTIONS, Promotion.model_validate(event))

    def turn_promoter(self, name: str) -> None:
        """One turn of a promoter, which starts where none runs."""

        def turn() -> None:
            if name not in self.promoters:
                skewed = self.clock.skewed(timedelta(minutes=7 if name == PROMOTERS[1] else 0))
                context = PartContext(at(name), self.store, "default", self.base, self.folder / name, clock=skewed)
                self.promoters[name] = Promoter(SETTINGS, DrawnTrials(self.chance), context)  # type: ignore[arg-type]
            self.promoters[name].turn()

        if not self._lives(name, turn):
            self.promoters.pop(name, None)

    def turn_replica(self, name: str, turns: int = 1) -> None:
        """Some turns of a replica's loader, on a connection of its own; the replica starts where none runs."""

        def turn() -> None:
            if name not in self.replicas:
                self.replicas[name] = self._started(name)
            replica = self.replicas[name]
            replica.engine.turns_left = turns
            replica.context.stopping.clear()
            replica.loader._follow()

        if not self._lives(name, turn):
            self.replicas.pop(name, None)

    def restart(self, name: str) -> None:
        """The process ends; the next turn starts another, which knows nothing."""
        self.promoters.pop(name, None)
        self.replicas.pop(name, None)

    def settle(self) -> None:
        """Until nobody moves and every replica has read everything."""
        self.planned.clear()
        for made in self.log.producers:
            made.deliver()
        quiet = 0
        for _ in range(200):
            before = (len(self.log.everything()), [self._live(name) for name in REPLICAS])
            self.clock.advance(minutes=3)
            for name in PROMOTERS if self.gated else ():
                self.turn_promoter(name)
            for name in REPLICAS:
                self.turn_replica(name, 6)
            after = (len(self.log.everything()), [self._live(name) for name in REPLICAS])
            quiet = quiet + 1 if before == after and all(self.replicas[name].loader.caught_up.is_set() for name in REPLICAS) else 0
            if quiet >= 8:
                return
        raise AssertionError("promoters or replicas never rest")

    def live(self) -> list[str | None]:
        """What each replica serves."""
        return [self._live(name) for name in REPLICAS]

    def standings(self) -> Iterable[tuple[AdapterStanding, Promotion, AdapterStanding]]:
        """Each legal move on the log, with the standing before and after it."""
        standing = AdapterStanding("default")
        for event in self.log.events(PROMOTIONS):
            after = standing.after(event)
            if after != standing:
                yield standing, event, after
            standing = after

    def _started(self, name: str) -> Replica:
        context = PartContext(at(name), self.store, "default", self.base, self.folder / f"{name}-{len(self.served[name])}", clock=self.clock)
        context.state.mkdir(parents=True, exist_ok=True)
        engine = SimulatedEngine(lambda adapter: adapter in self.bad)
        engine.stop = context.stopping.set
        loader = AdapterLoader(ActorSettings(poll_s=0.001), context, engine, DirectOutbox(producer(name)), name, self.gated)  # type: ignore[arg-type]
        self.served[name].append([])
        return Replica(loader, engine, context)

    def _live(self, name: str) -> str | None:
        return self.served[name][-1][-1] if self.served[name] and self.served[name][-1] else None

    def _lives(self, name: str, turn: Callable[[], None]) -> bool:
        """Do it. False where the process was killed at it."""
        try:
            turn()
        except Killed:
            for made in [each for each in self.log.producers if each.member == name]:
                if self.chance.random() < 0.5:
                    made.deliver()
                self.log.producers.remove(made)
            return False
        except Unavailable:
            pass
        finally:
            if (replica := self.replicas.get(name)) is not None:
                self.served[name][-1] = list(replica.engine.live)
        return True

    def _interrupt(self, member: str, operation: str) -> None:
        if member in self.planned:
            self.planned[member] -= 1
            if self.planned[member] < 0:
                del self.planned[member]
                raise Killed
