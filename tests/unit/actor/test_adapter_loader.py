"""The follower keeps a replica on the newest adapter that proves itself, whatever comes on the topic."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from actor.adapters.adapter_loader import AdapterLoader
from actor.adapters.attestation import AttestationProbe
from actor.adapters.placed_tensors import PlacedTensors
from actor.adapters.request_routing import Route
from actor.settings import ActorSettings
from streams.artifacts.artifact_store import ArtifactStore, fingerprint
from streams.core.clock import FixedClock
from streams.core.errors import AttestationFailed, BadArtifact, Unavailable
from streams.core.events import AdapterVersion, Artifact, Attestation, Event, Promotion, new_id
from streams.core.part_context import PartContext
from streams.core.topics import ADAPTERS, ATTESTATIONS, PROMOTIONS, Topic
from streams.kafka import KafkaSettings, Record
from tests.support.adapter_files import A, B, adapter_weights
from tests.support.simulated_log import Killed

PROBE = {"prompt_ids": [1], "output_ids": [2, 3], "adapter_logprobs": [-1.0, -2.0], "base_logprobs": [-2.0, -1.0]}
WEIGHTS = adapter_weights()
CONFIG = {"r": 8, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}


class Engine:
    """Serves what it is told to; may refuse, hang, or answer as something else."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.added: list[str] = []
        self.routes: list[Route] = []
        self.dropped: list[str] = []
        self.base = [-2.0, -1.0]
        self.answers: dict[str, list[float]] = {}
        self.tensors: dict[str, PlacedTensors] = {}
        self.refuses: set[str] = set()
        self.hangs: set[str] = set()

    def load(self, name: str, folder: Path) -> None:
        if name in self.refuses:
            raise BadArtifact("vLLM cannot load it")
        self.loaded.append(name)

    def placed(self, name: str, folder: Path) -> PlacedTensors:
        return self.tensors.get(name, PlacedTensors(("lora_A", "lora_B"), ()))

    def probe(self, name: str | None, probes: tuple[AttestationProbe, ...]) -> list[list[float]]:
        if name is None:
            return [self.base]
        if name in self.hangs:
            raise AttestationFailed("no answer")
        return [self.answers.get(name, [-1.0, -2.0])]

    def add(self, name: str, sha256: str) -> None:
        self.added.append(name)

    def route(self, route: Route) -> None:
        assert {name for name in (route.production, route.candidate, *route.kept) if name} <= set(self.added)
        self.routes.append(route)

    @property
    def live(self) -> list[str | None]:
        """What was in production, one after the other."""
        return [route.production for n, route in enumerate(self.routes) if n == 0 or self.routes[n - 1].production != route.production]

    def drop(self, name: str) -> None:
        self.dropped.append(name)

    def unload_idle(self) -> list[str]:
        return []


class Spool:
    def __init__(self) -> None:
        self.events: list[Attestation] = []

    def put(self, topic: Topic[Any], event: Event, headers: Any = ()) -> bool:
        assert isinstance(event, Attestation)
        self.events.append(event)
        return True


class World:
    def __init__(self, folder: Path, gated: bool = False) -> None:
        self.folder, self.engine, self.spool = folder, Engine(), Spool()
        base = folder / "base"
        base.mkdir()
        (base / "config.json").write_text("{}")
        self.fingerprint = fingerprint(base)
        self.store = ArtifactStore(str(folder / "store"))
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.clock = FixedClock(self.now)
        self.context = PartContext(KafkaSettings(), self.store, "default", base, folder / "state", clock=self.clock)
        self.records: list[Record] = []
        self.gated = gated
        self.start()

    def start(self) -> None:
        """The replica's process begins, and reads the log from its beginning."""
        self.follower = AdapterLoader(ActorSettings(), self.context, self.engine, self.spool, "r", self.gated)  # type: ignore[arg-type]
        for record in self.records:
            self.follower._note(record)

    def publish(self, version: int, config: dict[str, Any] = CONFIG, weights: bytes = WEIGHTS, norms: dict[str, float] | None = None,
                **changes: Any) -> AdapterVersion:  # fmt: skip
        source = self.folder / f"made-{version}-{weights[-16:].hex()}"
        source.mkdir()
        (source / "adapter_config.json").write_text(json.dumps(config))
        (source / "adapter_model.safetensors").write_bytes(weights)
        (source / "probes.json").write_text(json.dumps({"probes": [PROBE], "tensors": norms or {}}))
        artifact = self.store.put(source, f"adapters/{version}-{weights[-16:].hex()}")
        fields = {"policy": "default", "version": version, "artifact": artifact, "rank": 8, "step": 1,
                  "base_fingerprint": self.fingerprint, "targets": ("q_proj",), "reward_model_version": 1,
                  "created_at": datetime(2026, 1, 1, tzinfo=UTC)}  # fmt: skip
        adapter = AdapterVersion(**(fields | changes))
        self.note(ADAPTERS, adapter.encode())
        return adapter

    def note(self, topic: Topic[Any], value: bytes | None) -> None:
        """A record of the log reaches the replica."""
        self.records.append(Record(topic.name, 0, len(self.records), 0, b"k", value))
        self.follower._note(self.records[-1])

    def move(self, adapter: str, move: str, **fields: Any) -> None:
        event = Promotion.model_validate({"promotion_id": new_id("pr"), "policy": "default", "adapter": adapter, "move": move, "reason": "test",
                                          "at": datetime(2026, 1, 1, tzinfo=UTC)} | fields)  # fmt: skip
        self.note(PROMOTIONS, event.encode())

    def turn(self) -> None:
        self.follower._apply_route()

    @property
    def verdicts(self) -> dict[str, bool]:
        return {event.adapter: event.passed for event in self.spool.events}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_newest_of_several_is_taken_and_the_rest_are_never_loaded(world: World) -> None:
    for version in (1, 3, 2):
        world.publish(version)
    world.turn()
    assert world.engine.loaded == world.engine.live == ["default@3"]
    assert world.verdicts == {"default@3": True}
    assert world.context.metrics.value("tidemill_serving_version", policy="default") == 3


def test_times_from_thumb_and_publication_to_service_are_told_once_the_old_log_is_read(world: World) -> None:
    def counted() -> dict[str, float]:
        names = ("adapter_to_attested", "thumb_to_served", "adapter_load")
        return {name: world.context.metrics.value(f"tidemill_{name}_seconds_count") for name in names}

    heard = datetime(2026, 1, 1, tzinfo=UTC)
    world.publish(1, newest_feedback_at=heard)
    world.turn()
    assert counted() == {"adapter_to_attested": 0, "thumb_to_served": 0, "adapter_load": 1}
    world.follower.caught_up.set()
    world.publish(2, newest_feedback_at=heard)
    world.turn()
    assert counted() == {"adapter_to_attested": 1, "thumb_to_served": 1, "adapter_load": 2}
    world.clock.advance(seconds=7)
    world.follower._report_age_and_cost()
    assert world.context.metrics.value("tidemill_policy_age_seconds", policy="default") == 7


def test_an_older_version_that_comes_late_changes_nothing(world: World) -> None:
    world.publish(3)
    world.turn()
    world.publish(2)
    world.turn()
    assert world.engine.live == ["default@3"]


def test_after_a_restart_a_bad_newest_version_leaves_the_good_one_before_it_serving(world: World) -> None:
    world.publish(1)
    world.publish(2)
    world.engine.answers["default@2"] = [-2.0, -1.0]  # the base in its place
    world.turn()
    assert world.engine.live == ["default@1"]
    assert world.engine.dropped == ["default@2"]
    assert world.verdicts == {"default@2": False, "default@1": True}


@pytest.fixture
def gated(tmp_path: Path) -> World:
    world = World(tmp_path, gated=True)
    for version in (1, 2, 3):
        world.publish(version)
    return world


def test_with_gates_nothing_is_loaded_or_served_until_a_promotion_says_so(gated: World) -> None:
    gated.turn()
    assert gated.engine.loaded == gated.engine.routes == []


def test_a_replica_follows_an_adapter_through_every_stage_and_back(gated: World) -> None:
    gated.move("default@1", "promoted", by="ann")
    gated.turn()
    gated.move("default@2", "candidate")
    gated.turn()
    assert gated.verdicts == {"default@1": True, "default@2": True}  # attested before it sees any traffic
    gated.move("default@2", "shadow")
    gated.move("default@2", "canary", canary_share=0.25)
    gated.turn()
    gated.move("default@2", "promoted")
    gated.turn()
    gated.move("default@2", "rolled_back")
    gated.turn()
    assert gated.engine.routes == [
        Route("default@1"),
        Route("default@1", "default@2"),
        Route("default@1", "default@2", 0.25),
        Route("default@2", kept=("default@1",)),
        Route("default@1"),
    ]
    assert gated.engine.loaded == ["default@1", "default@2"]  # going back needs no loading


def test_a_replica_that_starts_late_stands_where_the_others_do(gated: World) -> None:
    for adapter, move in [(f"default@{v}", move) for v in (1, 2) for move in ("candidate", "shadow", "canary", "promoted")]:
        gated.move(adapter, move)
    gated.move("default@3", "candidate")
    gated.turn()
    assert gated.engine.routes == [Route("default@2", "default@3", kept=("default@1",))]
    assert gated.context.metrics.value("tidemill_serving_version", policy="default") == 2


def test_a_candidate_that_fails_its_attestation_gets_no_traffic_whatever_the_log_says(gated: World) -> None:
    gated.engine.answers["default@2"] = [-2.0, -1.0]  # the base in its place
    gated.move("default@1", "promoted", by="ann")
    for move in ("candidate", "shadow"):
        gated.move("default@2", move)
    gated.move("default@2", "canary", canary_share=0.5)
    gated.turn()
    gated.turn()
    assert gated.engine.routes == [Route("default@1")]
    assert gated.verdicts == {"default@1": True, "default@2": False}
    assert len(gated.spool.events) == 2  # a refused one is not tried again at once


def test_where_a_replica_cannot_serve_production_what_came_before_goes_on_and_no_canary_is_compared_with_it(gated: World) -> None:
    gated.move("default@1", "promoted", by="ann")
    gated.turn()
    gated.engine.refuses.add("default@2")
    gated.move("default@2", "promoted", by="ann")
    gated.turn()
    for move in ("candidate", "shadow"):
        gated.move("default@3", move)
    gated.move("default@3", "canary", canary_share=0.5)
    gated.turn()
    assert gated.engine.live == ["default@1"]
    assert gated.engine.routes[-1].canary_share == 0


def heard(world: World, replica: str, adapter: str, passed: bool = True, minutes: float = 0) -> None:
    """Another replica has said so, minutes after the promotion."""
    event = Attestation(replica=replica, adapter=adapter, adapter_sha256="0" * 64, passed=passed, reason="told", load_ms=1.0,
                        at=world.now + timedelta(minutes=minutes))  # fmt: skip
    world.note(ATTESTATIONS, event.encode())


def promoted_beside_others(world: World) -> None:
    """Production is 1 at three replicas; then a person promotes 2, which nobody has loaded yet."""
    world.move("default@1", "promoted", by="ann", at=world.now - timedelta(days=1))
    for replica in ("r", "s", "t"):
        heard(world, replica, "default@1", minutes=-30)
    world.turn()
    world.move("default@2", "promoted", by="ann", at=world.now)
    world.turn()
    assert world.engine.routes[-1] == Route("default@1", kept=("default@2", "default@1"))  # loaded and attested here, and waiting


def test_all_replicas_go_over_to_a_new_production_together(gated: World) -> None:
    promoted_beside_others(gated)
    for replica in ("r", "s"):
        heard(gated, replica, "default@2", minutes=1)
        gated.turn()
    assert gated.engine.live == ["default@1"]
    heard(gated, "t", "default@2", minutes=1)
    gated.turn()
    assert gated.engine.live == ["default@1", "default@2"]
    heard(gated, "t", "default@2", passed=False, minutes=2)  # as after a restart: the promoter's to judge, not each replica's for itself
    gated.turn()
    assert gated.engine.live == ["default@1", "default@2"]


def test_a_replica_that_refuses_a_new_production_leaves_the_old_one_serving_everywhere(gated: World) -> None:
    promoted_beside_others(gated)
    heard(gated, "r", "default@2")
    heard(gated, "s", "default@2", passed=False, minutes=1)
    heard(gated, "t", "default@2")
    gated.clock.advance(hours=1)
    gated.turn()
    assert gated.engine.live == ["default@1"]
    gated.move("default@2", "rolled_back", to="default@1")
    gated.turn()
    assert gated.engine.routes[-1].production == "default@1"


def test_a_replica_that_says_nothing_is_waited_for_only_so_long(gated: World) -> None:
    promoted_beside_others(gated)
    for replica in ("r", "s"):
        heard(gated, replica, "default@2")
    gated.clock.advance(seconds=ActorSettings().load_timeout_s - 1)
    gated.turn()
    assert gated.engine.live == ["default@1"]
    gated.clock.advance(seconds=2)
    gated.turn()
    assert gated.engine.live == ["default@1", "default@2"]


def test_a_replica_that_was_gone_for_long_and_those_of_other_policies_are_not_waited_for(gated: World) -> None:
    heard(gated, "gone", "default@1", minutes=-3000)
    heard(gated, "elsewhere", "other@1")
    gated.move("default@2", "promoted", by="ann", at=gated.now)
    gated.turn()
    assert gated.engine.live == ["default@2"]


def test_a_new_production_leaves_a_part_to_the_one_before_where_both_are_attested(gated: World) -> None:
    gated.move("default@1", "promoted", by="ann")
    gated.move("default@2", "promoted", by="ann", canary_share=0.9)
    gated.turn()
    assert gated.engine.routes[-1] == Route("default@2", production_share=0.9, before="default@1", kept=("default@1",))
    gated.move("default@2", "promoted", canary_share=1.0)
    gated.turn()
    assert gated.engine.routes[-1] == Route("default@2", kept=("default@1",))


def test_where_the_one_before_cannot_be_served_nothing_is_held_back(gated: World) -> None:
    gated.engine.refuses.add("default@1")
    gated.move("default@1", "promoted", by="ann")
    gated.move("default@2", "promoted", by="ann", canary_share=0.9)
    gated.turn()
    assert gated.engine.routes[-1] == Route("default@2")


def test_a_roll_back_to_the_base_is_served_by_the_base(gated: World) -> None:
    gated.move("default@1", "promoted", by="ann")
    gated.turn()
    gated.follower.caught_up.set()
    gated.move("default@1", "rolled_back", at=gated.now)
    gated.turn()
    assert gated.engine.routes[-1] == Route()
    assert gated.context.metrics.value("tidemill_serving_version", policy="default") == 0
    assert b"tidemill_promotion_served_seconds_count 1.0" in gated.context.metrics.text()


def test_a_version_that_is_asked_for_by_its_name_is_loaded_and_attested_and_what_is_refused_is_not_tried_at_once_again(gated: World) -> None:
    gated.move("default@1", "promoted", by="ann")
    gated.engine.refuses.add("default@3")
    gated.turn()
    asked = [gated.follower.request_load(name) for name in ("default@2", "default@2", "default@3", "default@3", "default@9", "other@2")]
    for _ in asked:
        gated.follower._load_requested()
    assert [each.result(0) for each in asked] == [True, True, False, False, False, False]
    assert gated.engine.loaded == gated.engine.added == ["default@1", "default@2"]
    assert [(event.adapter, event.passed) for event in gated.spool.events] == [("default@1", True), ("default@2", True), ("default@3", False)]
    assert gated.engine.routes == [Route("default@1")]  # being asked for changes nothing for anybody else


def test_a_replica_says_from_time_to_time_that_it_serves_what_it_attested(gated: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gated.turn()
    monkeypatch.setattr("actor.adapters.adapter_loader.REPEAT_S", 0.0)
    gated.follower._repeat_attestation()
    assert gated.spool.events == []  # of the base there is nothing to say
    gated.move("default@1", "promoted", by="ann")
    gated.turn()
    gated.clock.advance(minutes=20)
    gated.follower._repeat_attestation()
    first, again = gated.spool.events
    assert again == first.model_copy(update={"at": gated.now + timedelta(minutes=20)})
    monkeypatch.setattr("actor.adapters.adapter_loader.REPEAT_S", 600.0)
    gated.follower._repeat_attestation()
    assert len(gated.spool.events) == 2


def test_who_gave_up_asking_is_no_trouble_and_a_store_that_is_away_is_told_to_who_asked(gated: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = gated.follower.request_load("default@1")
    gone.cancel()
    gated.follower._load_requested()
    assert gated.engine.loaded == ["default@1"]

    def away(*_: object) -> Path:
        raise Unavailable("the artifact store is away")

    monkeypatch.setattr(gated.store, "fetch", away)
    asked = gated.follower.request_load("default@2")
    with pytest.raises(Unavailable):
        gated.follower._load_requested()
    assert asked.result(0) is False


Spoil = Callable[[World], AdapterVersion]


def _altered(world: World) -> AdapterVersion:
    adapter = world.publish(1)
    (world.folder / "store" / adapter.artifact.path / "adapter_model.safetensors").write_bytes(b"weightz")
    return adapter


def _truncated(world: World) -> AdapterVersion:
    adapter = world.publish(1)
    weights = world.folder / "store" / adapter.artifact.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    return adapter


def _refused(world: World) -> AdapterVersion:
    world.engine.refuses.add("default@1")
    return world.publish(1)


def _emptied(world: World) -> AdapterVersion:
    return world.publish(1, weights=adapter_weights(b=0.0), norms={A: 2.0, B: 3.0})


def _partial(world: World) -> AdapterVersion:
    world.engine.tensors["default@1"] = PlacedTensors(("layers.0.self_attn.q_proj.lora_A",), ("layers.0.mlp.experts.lora_B",))
    return world.publish(1)


def _silent(world: World) -> AdapterVersion:
    world.engine.hangs.add("default@1")
    return world.publish(1)


BAD: dict[str, tuple[Spoil, str]] = {
    "altered bytes": (_altered, "truncated or altered"),
    "a truncated file": (_truncated, "truncated or altered"),
    "a missing artifact": (lambda world: world.publish(1, artifact=Artifact(path="gone", sha256="0" * 64, size_bytes=1)), "no manifest"),
    "another base": (lambda world: world.publish(1, base_fingerprint="0" * 64), "trained on base"),
    "a rank beyond the limit": (lambda world: world.publish(1, config=CONFIG | {"r": 512}, rank=512), "max_rank"),
    "a rank of its experts beyond the limit": (
        lambda world: world.publish(1, config=CONFIG | {"rank_pattern": {"mlp.experts.down_proj": 512}}),
        "up to 512",
    ),
    "a rank that is not its event's": (lambda world: world.publish(1, rank=4), "its event says 4"),
    "a target that is not served": (
        lambda world: world.publish(
            1, weights=save({A: torch.ones(1, 4), "base_model.model.model.layers.0.mlp.gate.lora_A.weight": torch.ones(1, 4)})
        ),
        "mlp.gate.lora_A.weight: this replica serves LoRA on",
    ),
    "an engine that refuses it": (_refused, "cannot load"),
    "a tensor that was emptied": (_emptied, "1 of 2 tensors differ from the learner's export: model.layers.0.self_attn.q_proj.lora_B"),
    "an engine that places a part of it": (_partial, "1 of 2 tensors did not take effect here: layers.0.mlp.experts.lora_B"),
    "an engine that does not answer": (_silent, "no answer"),
}


@pytest.mark.parametrize(("spoil", "told"), BAD.values(), ids=BAD.keys())
def test_a_bad_adapter_is_refused_with_its_reason_and_the_old_one_goes_on(world: World, spoil: Spoil, told: str) -> None:
    adapter = spoil(world)
    world.turn()
    assert world.engine.live == []
    (event,) = world.spool.events
    assert (event.adapter, event.passed) == (adapter.name, False)
    assert told in event.reason
    refused = sum(world.context.metrics.value("tidemill_adapters_refused_total", reason=word) for word in ("bad_artifact", "not_attested"))
    assert refused == 1


def _noisy(world: World, says_norms: bool = True) -> None:
    """A replica that answers so noisily that two probe tokens cannot tell the adapter from half of it."""
    world.engine.base, world.engine.answers["default@1"] = [-2.1, -0.9], [-1.1, -1.9]
    world.publish(1, norms={A: 2.0, B: 3.0} if says_norms else None)


def test_an_adapter_that_its_answers_prove_is_told_of_with_its_share_and_the_replicas_noise(world: World) -> None:
    world.publish(1)
    world.turn()
    (event,) = world.spool.events
    assert (event.passed, event.reason, event.proof) == (True, "attested", "answers")
    assert (event.share, event.share_low, event.share_high, event.noise_nats) == (1, 1, 1, 0)


def test_an_adapter_that_noise_hides_is_served_by_its_tensors_and_not_called_proved_by_its_answers(world: World) -> None:
    _noisy(world)
    world.turn()
    (event,) = world.spool.events
    assert (event.passed, event.proof) == (True, "tensors")
    assert event.reason.startswith("all 2 tensors are in place; the probes cannot tell: they show 1.00 (")
    assert event.share_low is not None
    assert event.share_low < 0.6
    assert event.noise_nats == pytest.approx(0.1)
    assert world.engine.live == ["default@1"]


@pytest.mark.parametrize("unknown", ["what the engine holds", "what was exported"])
def test_an_adapter_that_noise_hides_is_not_served_where_its_tensors_cannot_be_compared_either(world: World, unknown: str) -> None:
    if unknown == "what the engine holds":
        world.engine.tensors["default@1"] = PlacedTensors(("lora_A",), (), ("lora_B",))
    _noisy(world, says_norms=unknown != "what was exported")
    world.turn()
    (event,) = world.spool.events
    assert (event.passed, event.proof) == (False, None)
    assert event.reason.startswith("the probes cannot tell")
    assert world.engine.live == []
    assert world.engine.dropped == ["default@1"]


def test_other_bytes_under_a_name_that_was_loaded_are_refused_for_the_engines_prefix_cache_goes_by_the_name(gated: World) -> None:
    gated.move("default@1", "promoted", by="ann")
    gated.move("default@2", "candidate")
    gated.turn()
    gated.move("default@2", "rejected")
    gated.turn()
    del gated.follower._loaded["default@2"]  # as when it was swept
    gated.publish(2, weights=adapter_weights(b=2.0))
    gated.move("default@2", "candidate")
    gated.turn()
    assert [event.passed for event in gated.spool.events] == [True, True, False]
    assert "with other content" in gated.spool.events[-1].reason
    assert gated.engine.loaded == ["default@1", "default@2"]
    assert gated.engine.routes[-1] == Route("default@1")


def test_another_policys_adapter_and_an_unreadable_event_are_passed_by(world: World) -> None:
    world.publish(1, policy="other")
    world.note(ADAPTERS, b"{")
    world.note(ADAPTERS, None)
    world.turn()
    assert world.engine.loaded == []
    assert world.context.metrics.value("tidemill_adapters_refused_total", reason="invalid_event") == 1


class EngineDied(Exception):
    """vLLM's own error, which ends the replica."""


@pytest.mark.parametrize("end", [Killed, EngineDied])
def test_an_adapter_that_kills_the_replica_twice_is_refused_and_the_one_before_it_serves(
    world: World, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    load = world.engine.load

    def dying(name: str, folder: Path) -> None:
        if name == "default@2":
            raise end
        load(name, folder)

    monkeypatch.setattr(world.engine, "load", dying)
    world.publish(1)
    world.publish(2)
    for _ in range(2):
        with pytest.raises(end):
            world.turn()
        world.start()
    world.turn()
    assert world.engine.live == ["default@1"]
    assert world.verdicts == {"default@2": False, "default@1": True}
    assert "died 2 times" in world.spool.events[0].reason
    assert world.context.metrics.value("tidemill_adapters_refused_total", reason="deadly") == 1


def test_a_replica_that_is_told_to_stop_while_it_loads_does_not_blame_the_adapter(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(name: str, folder: Path) -> None:
        raise Killed

    load = world.engine.load
    monkeypatch.setattr(world.engine, "load", killed)
    world.publish(1)
    for _ in range(3):
        with pytest.raises(Killed):
            world.turn()
        world.follower._in_hand.put_down()
        world.start()
    monkeypatch.setattr(world.engine, "load", load)
    world.turn()
    assert world.engine.live == ["default@1"]


def test_a_bug_in_the_follower_is_not_silent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.follower, "_follow", lambda: {}["no such key"])
    with pytest.raises(KeyError):
        world.follower._run()
    assert isinstance(world.follower.ended.exception(), KeyError)
