"""Promoters and replicas through kills and restarts: production only goes forward, unless somebody rolls it back, and all replicas come to agree."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from actor.promotion.promotion_stages import TIDEMILL, AdapterStanding
from tests.simulation.serving_world import PROMOTERS, REPLICAS, ServingWorld


class ServingStory(RuleBasedStateMachine):
    """``promotion.mode = "gated"``: production is what the promotions say."""

    gated = True

    @initialize(seed=st.integers(0, 1 << 30))
    def begin(self, seed: int) -> None:
        self.patch, self.folder = pytest.MonkeyPatch(), tempfile.TemporaryDirectory()
        self.world = ServingWorld(self.patch, Path(self.folder.name), seed, self.gated)

    @rule(good=st.sampled_from((True, True, True, False)), hours=st.sampled_from((0, 1)))
    def an_adapter_is_published(self, good: bool, hours: int) -> None:
        self.world.publish(good)
        self.world.clock.advance(hours=hours, minutes=1)

    @precondition(lambda self: self.gated)
    @rule(name=st.sampled_from(PROMOTERS), turns=st.integers(1, 6))
    def a_promoter_works(self, name: str, turns: int) -> None:
        for _ in range(turns):
            self.world.turn_promoter(name)
            self.world.clock.advance(minutes=2)

    @rule(name=st.sampled_from(REPLICAS), turns=st.integers(1, 6))
    def a_replica_works(self, name: str, turns: int) -> None:
        self.world.turn_replica(name, turns)

    @rule(name=st.sampled_from((*PROMOTERS, *REPLICAS)), calls=st.integers(0, 25))
    def a_process_will_be_killed(self, name: str, calls: int) -> None:
        self.world.planned[name] = calls

    @rule(name=st.sampled_from((*PROMOTERS, *REPLICAS)))
    def a_process_restarts(self, name: str) -> None:
        self.world.restart(name)

    @precondition(lambda self: self.gated)
    @rule(move=st.sampled_from(("promoted", "rolled_back", "candidate", "rejected")), version=st.integers(1, 6))
    def an_operator_moves(self, move: str, version: int) -> None:
        self.world.by_hand(move, version)

    @rule(hours=st.sampled_from((1, 5, 30)))
    def time_passes(self, hours: float) -> None:
        self.world.clock.advance(hours=hours)
        self.world.log.clean()

    @rule()
    def all_rest(self) -> None:
        self.world.settle()
        self._promises_hold()

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.world.settle()
                self._promises_hold()
        finally:
            self.folder.cleanup()
            self.patch.undo()

    def _promises_hold(self) -> None:
        moves = list(self.world.standings())
        standing = moves[-1][2] if moves else AdapterStanding("default")
        by_hand = False
        for before, event, after in moves:
            by_hand = event.by != TIDEMILL if event.move == "candidate" else by_hand
            if after.production != before.production and event.by == TIDEMILL and not by_hand:
                forward = (after.version(after.production) or 0) > (before.version(before.production) or 0)
                assert forward or event.move == "rolled_back", f"{event.adapter} was promoted after {before.production}"
        for name in REPLICAS:
            told = [None, *(after.production for _, _, after in moves)]
            for process in self.world.served[name]:
                assert follows(process, told, self.world.bad), f"{name} served {process}, promotions said {told}"
        servable = next((name for name in (standing.production, *reversed(standing.earlier)) if self._can_serve(name, standing)), None)
        assert self.world.live() == [servable] * len(REPLICAS), str(standing)

    def _can_serve(self, name: str | None, standing: AdapterStanding) -> bool:
        published = name is None or 0 < (standing.version(name) or 0) <= self.world.published
        return published and name not in self.world.bad and (name == standing.production or name not in standing.bad)


class NewestStory(ServingStory):
    """``promotion.mode = "newest"``: production is the newest adapter that a replica can load."""

    gated = False

    def _promises_hold(self) -> None:
        for name in REPLICAS:
            for process in self.world.served[name]:
                versions = [int((live or "@0").rpartition("@")[2]) for live in process]
                assert versions == sorted(set(versions)), f"{name} went back: {process}"
        good = [version for version in range(1, self.world.published + 1) if f"default@{version}" not in self.world.bad]
        assert self.world.live() == [f"default@{good[-1]}" if good else None] * len(REPLICAS)


def follows(process: list[str | None], told: list[str | None], bad: set[str]) -> bool:
    """Whether a process served what promotions said, in their order, leaving out what it missed or could not load."""
    at = 0
    for live in process:
        while at < len(told) and told[at] != live:
            at += 1
        if at == len(told):
            return bool(bad)  # in place of what it cannot load it serves an earlier production
    return True


stories = settings(stateful_step_count=25)
TestServingStory = ServingStory.TestCase
TestNewestStory = NewestStory.TestCase
TestServingStory.settings = settings(stories, max_examples=settings().max_examples)
TestNewestStory.settings = settings(stories, max_examples=max(5, settings().max_examples // 3))
