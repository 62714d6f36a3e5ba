"""Where adapters stand is a fold of the log, whoever reads it, whenever they start, whatever was written twice or out of turn."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actor.promotion.promotion_stages import AdapterStanding, Trial, fold
from streams.core.events import Promotion

T0 = datetime(2026, 1, 1, tzinfo=UTC)
MOVES = ("candidate", "shadow", "canary", "promoted", "rejected", "rolled_back")
ADAPTERS = tuple(f"default@{version}" for version in range(1, 4))


def moved(number: int, adapter: str, move: str, **fields: Any) -> Promotion:
    given = {"promotion_id": f"pr-{number}", "policy": "default", "adapter": adapter, "move": move, "reason": "test",
             "at": T0 + timedelta(minutes=number)}  # fmt: skip
    return Promotion.model_validate(given | fields)


def standing(*moves: tuple[str, str] | tuple[str, str, dict[str, Any]]) -> AdapterStanding:
    return fold("default", [moved(n, each[0], each[1], **(each[2] if len(each) > 2 else {})) for n, each in enumerate(moves)])


FULL = (("default@1", "candidate"), ("default@1", "shadow"), ("default@1", "canary"), ("default@1", "promoted"))


def test_an_adapter_passes_every_stage_on_its_way_to_production() -> None:
    now = standing(*FULL)
    assert (now.production, now.trial, now.previous) == ("default@1", None, None)
    second = standing(*FULL, *(("default@2", move) for _, move in FULL))
    assert (second.production, second.previous, second.wanted) == ("default@2", "default@1", ("default@2", "default@1"))


@pytest.mark.parametrize("reached", range(4))
@pytest.mark.parametrize("move", MOVES[1:4])
def test_the_machine_skips_no_stage_and_repeats_none(reached: int, move: str) -> None:
    before = standing(*FULL[:reached])
    event = moved(99, "default@1", move)
    allowed = FULL[reached][1] == move
    assert (before.refusal(event) is None) == allowed
    assert (before.after(event) == before) == (not allowed)


def test_a_person_may_promote_by_hand_which_ends_what_was_being_tried() -> None:
    now = standing(*FULL[:2], ("default@2", "promoted", {"by": "ann"}))
    assert (now.production, now.trial) == ("default@2", None)
    assert standing(("default@2", "promoted")).production is None


def test_a_new_production_leaves_a_part_to_the_one_before_until_it_is_promoted_for_all() -> None:
    before = (*FULL, *(("default@2", move) for _, move in FULL[:3]))
    now = standing(*before, ("default@2", "promoted", {"canary_share": 0.95}))
    assert (now.production, now.share, now.since, now.previous) == ("default@2", 0.95, T0 + timedelta(minutes=7), "default@1")
    assert now.refusal(moved(50, "default@2", "promoted")) == "it is in production"
    assert now.refusal(moved(51, "default@2", "promoted", canary_share=0.95)) == "it changes nothing"
    ended = now.after(moved(52, "default@2", "promoted", canary_share=1.0))
    assert (ended.production, ended.share, ended.since, ended.earlier) == ("default@2", 1.0, now.since, now.earlier)
    back = now.after(moved(53, "default@2", "rolled_back"))
    assert (back.production, back.share, back.since) == ("default@1", 1.0, None)


def test_harm_in_canary_leaves_production_as_it_was() -> None:
    now = standing(*FULL, ("default@2", "candidate"), ("default@2", "shadow"), ("default@2", "canary"), ("default@2", "rolled_back"))
    assert (now.production, now.trial, now.bad) == ("default@1", None, {"default@2"})


def test_a_roll_back_goes_to_the_production_before_and_then_to_the_base() -> None:
    two = [*FULL, *(("default@2", move) for _, move in FULL)]
    assert standing(*two, ("default@2", "rolled_back")).production == "default@1"
    now = standing(*two, ("default@2", "rolled_back"), ("default@1", "rolled_back"))
    assert (now.production, now.earlier, now.bad) == (None, (), {"default@1", "default@2"})
    assert standing(*two, ("default@1", "rolled_back")).production == "default@2"  # it is not in production


def test_a_roll_back_never_returns_to_what_was_found_bad_since() -> None:
    two = [*FULL, *(("default@2", move) for _, move in FULL)]
    now = standing(*two, ("default@1", "candidate"), ("default@1", "rejected"), ("default@2", "rolled_back"))
    assert (now.production, now.earlier) == (None, ())


def test_a_roll_back_may_name_where_to() -> None:
    three = [(f"default@{v}", move) for v in (1, 2, 3) for _, move in FULL]
    far = standing(*three, ("default@3", "rolled_back", {"to": "default@1"}))
    assert (far.production, far.earlier) == ("default@1", (None,))
    assert standing(*three, ("default@3", "rolled_back", {"to": "default@0"})).production is None
    assert standing(*three, ("default@3", "rolled_back", {"to": "other@1"})).production == "default@3"


def test_a_roll_back_of_production_ends_the_trial_that_was_measured_against_it() -> None:
    assert standing(*FULL, ("default@2", "candidate"), ("default@1", "rolled_back")).trial is None


def test_a_canary_that_goes_on_keeps_its_beginning_and_share() -> None:
    now = standing(*FULL[:2], ("default@1", "canary", {"canary_share": 0.2}), ("default@1", "canary", {"awaits_approval": True}))
    assert now.trial == Trial("default@1", "canary", T0 + timedelta(minutes=2), 0.2, awaits_approval=True)


@pytest.mark.parametrize(
    ("fields", "legal"), [({}, False), ({"canary_share": 0.2}, False), ({"canary_share": 0.4}, True), ({"awaits_approval": True}, True)]
)
def test_a_second_canary_must_change_something(fields: dict[str, Any], legal: bool) -> None:
    before = standing(*FULL[:2], ("default@1", "canary", {"canary_share": 0.2}))
    assert (before.refusal(moved(9, "default@1", "canary", **fields)) is None) is legal


def test_one_adapter_is_tried_at_a_time_and_only_of_this_policy() -> None:
    before = standing(FULL[0])
    for event in (moved(9, "default@2", "candidate"), moved(9, "other@2", "shadow"), moved(9, "default@1", "shadow", policy="other")):
        assert before.after(event) == before


events = st.builds(
    lambda number, adapter, move, by, share, to: moved(number, adapter, move, by=by, canary_share=share, to=to),
    st.integers(0, 60), st.sampled_from((*ADAPTERS, "other@1", "default@x")), st.sampled_from(MOVES), st.sampled_from(("tidemill", "ann")),
    st.sampled_from((None, 0.1)), st.sampled_from((None, None, "default@0", "default@2")),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(events, max_size=40), st.data())
def test_what_is_void_leaves_no_trace_and_what_is_sent_twice_counts_once(log: list[Promotion], data: st.DataObject) -> None:
    now, legal = AdapterStanding("default"), []
    for event in log:
        if now.refusal(event) is None:
            legal.append(event)
        now = now.after(event)
    assert fold("default", legal) == now
    twice = [event for event in log for _ in range(data.draw(st.integers(1, 2)))]
    assert fold("default", twice) == now
    assert fold("default", [*log, *log]) == now  # read again from its beginning, as after a broken connection


def test_what_was_void_at_first_is_void_when_it_is_read_again() -> None:
    log = [moved(1, "default@1", "shadow"), moved(2, "default@1", "candidate")]
    now = fold("default", [*log, *log])
    assert now.trial is not None
    assert now.trial.stage == "candidate"


def test_a_candidate_that_was_rejected_is_not_one_again_because_its_event_comes_twice() -> None:
    log = [moved(1, "default@1", "candidate"), moved(2, "default@1", "rejected")]
    assert fold("default", [*log, log[0]]).trial is None


class Machine(RuleBasedStateMachine):
    """A writer that may be killed at any moment, and another who writes what they like."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[bytes] = []
        self.now = AdapterStanding("default")
        self.number = 0

    def _write(self, adapter: str, move: str, **fields: Any) -> None:
        self.number += 1
        event = moved(self.number, adapter, move, **fields)
        self.log.append(event.encode())
        before, self.now = self.now, self.now.after(event)
        if event.by == "tidemill" and before.production != self.now.production and self.now.production is not None and event.move == "promoted":
            assert before.trial is not None
            assert (before.trial.adapter, before.trial.stage) == (adapter, "canary")

    @rule(adapter=st.sampled_from(ADAPTERS), move=st.sampled_from(MOVES), by=st.sampled_from(("tidemill", "ann")))
    def anybody_writes_anything(self, adapter: str, move: str, by: str) -> None:
        self._write(adapter, move, by=by)

    @rule(adapter=st.sampled_from(ADAPTERS))
    def the_machine_goes_on(self, adapter: str) -> None:
        trial = self.now.trial
        following = {"candidate": "shadow", "shadow": "canary", "canary": "promoted"}
        self._write(trial.adapter, following[trial.stage]) if trial else self._write(adapter, "candidate")

    @rule()
    def production_is_rolled_back(self) -> None:
        if self.now.production is not None:
            expected = self.now.previous
            self._write(self.now.production, "rolled_back")
            assert self.now.production == expected

    @rule()
    def it_is_killed_and_starts_again(self) -> None:
        again = fold("default", [Promotion.decode(raw) for raw in self.log])
        assert again == self.now
        self.now = again

    @invariant()
    def it_stands_somewhere_possible(self) -> None:
        now = self.now
        assert now.production is None or (now.production not in now.bad)
        assert now.trial is None or (now.trial.adapter != now.production and now.trial.adapter in now.tried)
        assert len(now.wanted) <= 3
        assert now.production is None or now.earlier[0] is None


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
