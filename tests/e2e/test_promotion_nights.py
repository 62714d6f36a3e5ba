"""Whole nights of promotion on a real Kafka: real promoter, real followers and routing, simulated people; only the engine and the reward
model are stand-ins."""

import hashlib
import json
import random
import time
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from actor.actor_client import ComparedAnswer, PromptRequest
from actor.adapters.adapter_loader import AdapterLoader
from actor.adapters.attestation import AttestationProbe
from actor.adapters.placed_tensors import PlacedTensors
from actor.adapters.request_routing import Route, Router
from actor.promotion.candidate_trials import Trials
from actor.promotion.promoter import Promoter, telling
from actor.promotion.promotion_settings import PromotionSettings
from actor.promotion.promotion_stages import AdapterStanding, fold
from actor.promotion.retention_probes import RetentionProbe
from actor.settings import ActorSettings
from streams.artifacts.artifact_store import ArtifactStore, fingerprint
from streams.core.clock import FixedClock
from streams.core.events import (
    AdapterVersion,
    Artifact,
    Attestation,
    Calibration,
    Episode,
    Label,
    Message,
    Promotion,
    RewardModelVersion,
    Vote,
    new_id,
)
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import ADAPTERS, EPISODES, LABELS, PROMOTIONS, REWARD_MODELS, Topic
from streams.kafka import KafkaSettings, Producer, read_to_end
from tests.support.adapter_files import adapter_weights

PROBE = {"prompt_ids": [1], "output_ids": [2, 3], "adapter_logprobs": [-1.0, -2.0], "base_logprobs": [-2.0, -1.0]}
SUBJECTS = (
    "tea", "chess", "rain", "bread", "whales", "glass", "jazz", "salt", "owls", "paper", "coral", "honey", "maps", "coffee", "snow", "trains",
    "cheese", "ink", "bees", "rice",
)  # fmt: skip
SETTINGS = PromotionSettings(
    mode="gated", prompts=64, shadow_prompts=20, min_canary_labels=30, max_canary_labels=300, canary_share=0.3, prompts_kept=4000, seed=5,
    cron="0 3 * * *", time_zone="Europe/Berlin", tries_per_night=1, min_replicas=2,
)  # fmt: skip
RETENTION = tuple(RetentionProbe(f"What is {n} plus one?", (rf"\b{n + 1}\b",)) for n in range(10))


class Engine:
    """Serves what it is told to, through the real router."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.routes: list[Route] = []

    def load(self, name: str, folder: Path) -> None:
        return None

    def placed(self, name: str, folder: Path) -> PlacedTensors:
        return PlacedTensors(("lora_A", "lora_B"), ())

    def probe(self, name: str | None, probes: tuple[AttestationProbe, ...]) -> list[list[float]]:
        return [[-2.0, -1.0] if name is None else [-1.0, -2.0]]

    def add(self, name: str, sha256: str) -> None:
        self.router.add(name, sha256)

    def route(self, route: Route) -> None:
        self.router.route = route
        self.routes.append(route)

    def drop(self, name: str) -> None:
        return None

    def unload_idle(self) -> list[str]:
        names = self.router.idle()
        for name in names:
            self.router.remove(name)
        return names


class Straight:
    """An outbox that sends at once."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def put(self, topic: Topic[Any], event: Attestation, headers: Any = ()) -> bool:
        self._producer.publish(topic, event)
        return True


class Town:
    """A policy, its two replicas and its people, on one Kafka. What each version is like is given by its name; the base is ``@0``."""

    def __init__(self, kafka: KafkaSettings, folder: Path, policy: str) -> None:
        self.policy, self._random = policy, random.Random(1)
        self.clock = FixedClock(datetime(2026, 3, 10, 12, 0, tzinfo=UTC))
        self.likes: dict[str, float] = {f"{policy}@0": 0.5}
        """Chance that people like an answer."""
        self.scores: dict[str, float] = {f"{policy}@0": 0.5}
        """What the reward model thinks of its answers, on average."""
        self.forgets: set[str] = set()
        self.promoter_metrics = Metrics()
        self._folder, self._store = folder, ArtifactStore(str(folder / "store"))
        base = folder / "base"
        base.mkdir()
        (base / "config.json").write_text("{}")
        self._base_fingerprint = fingerprint(base)
        self.kafka, self._producer = kafka, Producer(kafka, Metrics(), "town")
        self.sites = [PartContext(kafka, self._store, policy, base, folder / f"replica-{n}", clock=self.clock) for n in range(2)]
        self.routers = [Router(policy) for _ in self.sites]
        self.engines = [Engine(router) for router in self.routers]
        self._followers = [
            AdapterLoader(ActorSettings(poll_s=0.05), context, engine, Straight(self._producer), f"replica-{n}", gated=True)  # type: ignore[arg-type]
            for n, (context, engine) in enumerate(zip(self.sites, self.engines, strict=True))
        ]
        for follower in self._followers:
            follower.start()
        self._publish_reward_model()
        self.talk(120)

    def close(self) -> None:
        for context, follower in zip(self.sites, self._followers, strict=True):
            context.stopping.set()
            follower.join(10)
        self._producer.close()

    def promoter(self, **changes: Any) -> Promoter:
        """A fresh one, as after a kill: it knows what the log says and nothing else."""
        settings = SETTINGS.model_copy(update=changes)
        context = PartContext(self.kafka, self._store, self.policy, self._folder / "base", self._folder / "promoter", self.promoter_metrics,
                    clock=self.clock)  # fmt: skip
        return Promoter(settings, Trials(settings, self.policy, self, self, RETENTION, "http://none", telling(context)), context)

    def publish(self, version: int, likes: float, scores: float, forgets: bool = False) -> str:
        """The learner has made an adapter."""
        name, source = f"{self.policy}@{version}", self._folder / f"made-{version}"
        source.mkdir()
        (source / "adapter_config.json").write_text(json.dumps({"r": 8, "target_modules": ["q_proj"]}))
        (source / "adapter_model.safetensors").write_bytes(adapter_weights())
        (source / "probes.json").write_text(json.dumps({"probes": [PROBE]}))
        self._producer.publish(ADAPTERS, AdapterVersion(
            policy=self.policy, version=version, artifact=self._store.put(source, f"adapters/{version}"), rank=8, step=version, targets=("q_proj",),
            base_fingerprint=self._base_fingerprint, reward_model_version=1, metrics={"kl_nats": 0.1}, created_at=self.clock.now(),
        ))  # fmt: skip
        self.likes[name], self.scores[name] = likes, scores
        if forgets:
            self.forgets.add(name)
        return name

    def talk(self, people: int) -> None:
        """Each has a conversation of one turn with either replica, and thumbs it."""
        waits = []
        for _ in range(people):
            self.clock.advance(seconds=2)
            conversation, subject = new_id("c"), self._random.choice(SUBJECTS)
            model, chosen = self._random.choice(self.routers).assign(self.policy, f"conversation {conversation}")
            adapter = None if model == "base" else str(model)
            name, now = adapter or f"{self.policy}@0", self.clock.now()
            asked = (Message(role="user", content=f"Tell me something about {subject}, number {self._random.randrange(10_000)}."),)
            answer = self._answer(name, asked[-1].text)
            episode = Episode(episode_id=new_id("ep"), policy=self.policy, conversation_id=conversation, adapter=adapter, assignment=chosen,
                              messages=asked, answer=answer, started_at=now, ended_at=now)  # fmt: skip
            value = float(self._random.random() < self.likes[name])
            vote = Vote(feedback_id=new_id("fb"), user_id=new_id("u"), kind="thumb", value=value, at=now)
            label = Label(episode_id=episode.episode_id, policy=self.policy, conversation_id=conversation, adapter=adapter, assignment=chosen,
                          outcome="completed", messages=asked, answer=answer, verdict=value, votes=(vote,), episode_at=now, first_feedback_at=now,
                          newest_feedback_at=now)  # fmt: skip
            waits += [self._producer.send(EPISODES, episode), self._producer.send(LABELS, label)]
        self._producer.flush()

    def say(self, adapter: str, move: str, **fields: Any) -> Promotion:
        """A person writes a move."""
        event = Promotion.model_validate({"promotion_id": new_id("pr"), "policy": self.policy, "adapter": adapter, "move": move, "reason": "test",
                                          "by": "ann", "at": self.clock.now()} | fields)  # fmt: skip
        self._producer.publish(PROMOTIONS, event)
        return event

    @property
    def log(self) -> list[Promotion]:
        events = [PROMOTIONS.decode(record.value) for record in read_to_end(self.kafka, PROMOTIONS, "test", Metrics())]
        return [event for event in events if event.policy == self.policy]

    @property
    def standing(self) -> AdapterStanding:
        return fold(self.policy, self.log)

    def moves(self) -> list[tuple[int, str]]:
        return [(int(event.adapter.rpartition("@")[2]), event.move) for event in self.log]

    def settle(self, timeout_s: float = 15.0) -> float:
        """Wait until every replica serves by what the log says; how long that took, in seconds."""
        standing, started = self.standing, time.monotonic()
        trial = standing.trial

        def settled(route: Route) -> bool:
            wanted = (standing.production, standing.share, trial.adapter if trial else None, trial.canary_share if trial else 0.0)
            return (route.production, route.production_share, route.candidate, route.canary_share) == wanted

        while not all(settled(router.route) for router in self.routers):
            assert time.monotonic() - started < timeout_s, (standing, [router.route for router in self.routers])
            time.sleep(0.01)
        return time.monotonic() - started

    def night(self, killed_after_each_move: bool = False, most_turns: int = 60, **changes: Any) -> None:
        """Until nothing more is on trial, people talking all the while."""
        promoter = self.promoter(**changes)
        for _ in range(most_turns):
            promoter.turn()
            self.settle()
            if (trial := self.standing.trial) is None or trial.awaits_approval:
                break
            if trial.stage != "candidate":
                self.talk(60)
            if killed_after_each_move:
                promoter.close()
                promoter = self.promoter(**changes)
        promoter.close()

    def ask(self, model: str, questions: Sequence[PromptRequest]) -> list[str | None]:
        """The actors' API."""
        return [self._answer(model, question.messages[-1].text) for question in questions]

    def compare(self, model: str, other: str, questions: Sequence[PromptRequest]) -> list[ComparedAnswer | None]:
        """The actors' API too."""
        return [ComparedAnswer((-1.0,) * 8, (-1.3,) * 8) for _ in questions]

    def score(self, version: RewardModelVersion, pairs: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        """The reward model: it knows each version's answers by their last word."""
        return [self.scores[answer.rsplit(" ", 1)[1]] + 0.6 * (_chance(answer, messages[-1].text) - 0.5) for messages, answer in pairs]

    def drifts(self, version: RewardModelVersion, labels: Sequence[Label]) -> bool:
        return False

    def _answer(self, name: str, question: str) -> str:
        if question.startswith("What is "):
            n = int(question.split()[2])
            return f"That is {n if name in self.forgets else n + 1}."
        return f"{SUBJECTS[int(20 * _chance(question, 'a'))]} and {SUBJECTS[int(20 * _chance(question, 'b'))]} go well together if you ask me {name}"

    def _publish_reward_model(self) -> None:
        now = self.clock.now()
        self._producer.publish(REWARD_MODELS, RewardModelVersion(
            policy=self.policy, version=1, artifact=Artifact(path="rm", sha256="0" * 64, size_bytes=1), backbone_fingerprint="1" * 64, labels=200,
            calibration=Calibration(labels=200, accuracy=0.8, baseline=0.5, brier=0.1, ece=0.04, auc=0.85), offsets={}, newest_feedback_at=now,
            created_at=now,
        ))  # fmt: skip

    def to_night(self, days: int = 1) -> None:
        """Two in the morning in UTC is three in Berlin, in winter."""
        now = self.clock.now()
        then = datetime(now.year, now.month, now.day, 2, 0, 30, tzinfo=UTC) + timedelta(days=days)
        self.clock.advance(seconds=(then - now).total_seconds())


def _chance(*words: str) -> float:
    return int.from_bytes(hashlib.sha256("|".join(words).encode()).digest()[:8], "big") / 2**64


@pytest.fixture
def town(kafka_settings: KafkaSettings, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Town]:
    made = Town(kafka_settings, tmp_path, f"policy-{zlib.crc32(request.node.name.encode())}")
    yield made
    made.close()


def test_a_better_adapter_is_promoted_with_its_evidence(town: Town) -> None:
    better = town.publish(1, likes=0.8, scores=0.75)
    promoter = town.promoter()
    assert promoter.turn() is None  # it is noon
    promoter.close()
    town.to_night()
    town.night()
    assert town.moves() == [(1, "candidate"), (1, "shadow"), (1, "canary"), (1, "promoted")]
    assert [router.route.production for router in town.routers] == [better, better]
    gates, canary, promoted = (event.evidence for event in town.log[1:])
    assert {gate["gate"] for gate in gates["gates"]} == {"attested", "kl_budget", "reward_model", "win_rate", "retention", "hacking", "shift"}
    assert {gate["gate"] for gate in canary["gates"]} == {"win_rate", "hacking", "shift"}
    rules = next(gate["rules"] for gate in canary["gates"] if gate["gate"] == "hacking")
    for rule, found in rules.items():
        assert town.promoter_metrics.value("tidemill_reward_guard_ratio", rule=rule) == found["value"]
    assert 0 < promoted["low"] < promoted["uplift"] < promoted["high"]
    assert promoted["low"] < 0.3 < promoted["high"]  # what is true
    assert promoted["candidate"]["labels"] >= 30


def test_an_equal_adapter_is_stopped_at_the_gates(town: Town) -> None:
    town.publish(1, likes=0.5, scores=0.5)
    town.to_night()
    town.night()
    assert town.moves() == [(1, "candidate"), (1, "rejected")]
    assert [gate["gate"] for gate in town.log[-1].evidence["gates"] if not gate["passed"]] == ["win_rate"]
    assert town.standing.production is None


def test_one_that_only_the_reward_model_likes_better_is_not_promoted_when_people_see_no_difference(town: Town) -> None:
    town.publish(1, likes=0.5, scores=0.75)
    town.to_night()
    town.night()
    assert town.moves() == [(1, "candidate"), (1, "shadow"), (1, "canary"), (1, "rejected")]
    evidence = town.log[-1].evidence
    assert evidence["candidate"]["labels"] >= 300
    assert evidence["low"] < 0 < evidence["high"]


def test_one_that_the_reward_model_likes_and_people_do_not_is_stopped_in_canary_and_rolled_back(town: Town) -> None:
    good = town.publish(1, likes=0.8, scores=0.75)
    town.say(good, "promoted", canary_share=SETTINGS.promoted_share)
    town.settle()
    town.talk(60)
    town.publish(2, likes=0.4, scores=0.95)
    town.to_night()
    town.night()
    assert town.moves()[1:] == [(2, "candidate"), (2, "shadow"), (2, "canary"), (2, "rolled_back")]
    evidence = town.log[-1].evidence
    assert evidence["harm_high"] < 0
    assert evidence["candidate"]["labels"] < 300  # long before all the exposure that it might have had
    assert {router.route for router in town.routers} == {Route(good, production_share=0.95)}
    told = [town.promoter_metrics.value("tidemill_canary_difference", policy=town.policy, bound=bound) for bound in ("low", "estimate", "high")]
    assert told == [evidence["low"], evidence["uplift"], evidence["high"]]


def test_one_that_forgets_is_stopped_at_retention(town: Town) -> None:
    town.publish(1, likes=0.8, scores=0.75, forgets=True)
    town.to_night()
    town.night()
    assert town.moves() == [(1, "candidate"), (1, "rejected")]
    assert [gate["gate"] for gate in town.log[-1].evidence["gates"] if not gate["passed"]] == ["retention"]


def test_two_nights_in_a_row_with_the_promoter_killed_after_every_move(town: Town) -> None:
    first = town.publish(1, likes=0.8, scores=0.75)
    town.to_night()
    town.night(killed_after_each_move=True)
    town.clock.advance(hours=8)
    town.talk(60)
    town.publish(2, likes=0.3, scores=0.95)
    town.clock.advance(hours=1)
    second = town.publish(3, likes=0.97, scores=0.99)
    town.to_night()
    town.night(killed_after_each_move=True)
    stages = ("candidate", "shadow", "canary", "promoted")
    assert town.moves() == [(1, move) for move in stages] + [(3, move) for move in stages]  # the newest of the day, and nothing twice
    assert (town.standing.production, town.standing.previous) == (second, first)
    promoter = town.promoter()
    assert promoter.turn() is None  # one try a night
    promoter.close()


def test_two_promoters_at_once_come_to_what_one_comes_to(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    better = town.publish(1, likes=0.85, scores=0.75)
    town.to_night()
    two = [town.promoter(), town.promoter()]
    for _ in range(30):
        for promoter in two:
            promoter._read()
        with monkeypatch.context() as deaf:  # both decide before either has heard of the other's move
            deaf.setattr(Promoter, "_read", lambda self: None)
            for promoter in two:
                promoter.turn()
        town.settle()
        if town.standing.trial is None:
            break
        town.talk(60)
    assert town.standing.production == better
    assert len(town.moves()) > 4  # some were written twice
    standing, legal = AdapterStanding(town.policy), []
    for event in town.log:
        legal += [event.move] if standing.refusal(event) is None else []
        standing = standing.after(event)
    assert legal == ["candidate", "shadow", "canary", "promoted"]
    for promoter in two:
        promoter.close()


def test_with_a_persons_approval_the_better_one_waits_and_harm_is_still_looked_for(town: Town) -> None:
    better = town.publish(1, likes=0.85, scores=0.75)
    town.to_night()
    town.night(approval="human")
    trial = town.standing.trial
    assert trial is not None
    assert (trial.stage, trial.awaits_approval, trial.canary_share) == ("canary", True, 0.3)
    promoter = town.promoter(approval="human")
    assert promoter.turn() is None
    town.say(better, "promoted", evidence=dict(trial.evidence))
    town.settle()
    event = promoter.turn()
    assert event is not None
    assert (event.move, event.canary_share) == ("promoted", 0.95)  # it is compared with the one before for a while
    assert town.standing.production == better
    promoter.close()


def test_what_was_better_and_turns_bad_while_it_waits_is_rolled_back(town: Town) -> None:
    better = town.publish(1, likes=0.9, scores=0.75)
    town.to_night()
    town.night(approval="human")
    town.likes[better] = 0.02
    town.night(approval="human", most_turns=1)
    promoter = town.promoter(approval="human")
    for _ in range(40):
        town.talk(60)
        if (event := promoter.turn()) is not None:
            break
    assert event is not None
    assert (event.move, town.standing.production) == ("rolled_back", None)
    promoter.close()


def test_a_replica_that_refuses_the_candidate_stops_it(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    town.publish(1, likes=0.8, scores=0.75)
    monkeypatch.setattr(town.engines[1], "probe", lambda name, probes: [[-2.0, -1.0]])  # the base in its place
    town.to_night()
    promoter = town.promoter()
    promoter.turn()
    for _ in range(40):
        time.sleep(0.1)
        if (event := promoter.turn()) is not None:
            break
    assert event is not None
    assert (event.move, event.evidence["gates"][0]["gate"]) == ("rejected", "attested")
    assert "replica-1" in event.evidence["gates"][0]["failed"]
    promoter.close()


def test_a_production_that_turns_bad_is_rolled_back_by_what_was_held_back_on_the_one_before(town: Town) -> None:
    town.say(town.publish(1, likes=0.6, scores=0.6), "promoted", canary_share=0.8)
    town.settle()
    better = town.publish(2, likes=0.9, scores=0.85)
    town.to_night()
    town.night(held_back_share=0.2)
    assert (town.standing.production, town.standing.share) == (better, 0.8)
    town.talk(100)
    promoter = town.promoter(held_back_share=0.2)
    assert promoter.turn() is None  # people like it still
    promoter.close()
    town.likes[better] = 0.1
    promoter = town.promoter(held_back_share=0.2)  # it was killed: what it had seen, the log says
    for _ in range(30):
        town.talk(60)
        if (event := promoter.turn()) is not None:
            break
    promoter.close()
    assert event is not None
    assert (event.move, event.adapter, event.by) == ("rolled_back", better, "tidemill")
    assert event.evidence["harm_high"] < 0
    assert event.evidence["before"] == f"{town.policy}@1"
    town.settle()
    assert {router.route for router in town.routers} == {Route(f"{town.policy}@1")}


def test_a_new_production_that_does_no_harm_answers_everybody_when_its_time_is_over(town: Town) -> None:
    better = town.publish(1, likes=0.8, scores=0.75)
    town.to_night()
    town.night()
    sides = {town.routers[0].resolve(town.policy, f"conversation {n}") for n in range(500)}
    assert sides == {better, "base"}
    town.talk(120)
    town.clock.advance(hours=SETTINGS.watch_h)
    promoter = town.promoter()
    event = promoter.turn()
    assert event is not None
    assert (event.move, event.canary_share) == ("promoted", 1.0)
    assert promoter.turn() is None
    promoter.close()
    town.settle()
    assert {router.resolve(town.policy, f"conversation {n}") for n in range(500) for router in town.routers} == {better}


def test_a_production_by_hand_that_one_replica_refuses_is_served_by_none_and_goes_back_by_an_event(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = town.publish(1, likes=0.5, scores=0.5)
    town.say(good, "promoted")
    town.settle()
    bad = town.publish(2, likes=0.5, scores=0.5)
    monkeypatch.setattr(town.engines[1], "probe", lambda name, probes: [[-2.0, -1.0]])  # the base in its place
    town.say(bad, "promoted")
    promoter, event = town.promoter(), None
    for _ in range(100):
        if (event := promoter.turn()) is not None:
            break
    assert event is not None
    assert (event.move, event.adapter) == ("rolled_back", bad)
    assert list(event.evidence["failed"]) == ["replica-1"]
    assert bad not in {route.production for engine in town.engines for route in engine.routes}
    town.settle()
    assert [router.route.production for router in town.routers] == [good, good]
    promoter.close()


def test_a_roll_back_is_served_everywhere(town: Town) -> None:
    for version in (1, 2):
        town.say(town.publish(version, likes=0.5, scores=0.5), "promoted")
        town.settle()
    started = time.monotonic()
    town.say(f"{town.policy}@2", "rolled_back")
    town.settle()
    took_s = time.monotonic() - started
    assert {router.route.production for router in town.routers} == {f"{town.policy}@1"}
    print(f"served by two replicas {took_s:.3f} s after the decision")
