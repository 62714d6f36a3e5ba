"""A new production is watched beside what is held back on the one before it, and goes back by itself."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from actor.promotion.held_back import next_move
from actor.promotion.promotion_evidence import PromotionEvidence
from actor.promotion.promotion_settings import PromotionSettings
from actor.promotion.promotion_stages import PromotionMove
from reward.trust.hacking_guards import GuardFinding
from streams.core.events import Assignment, Attestation, Episode, Event, Label, Message, Promotion, Vote

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = PromotionSettings(watch_h=48)
NEW, BEFORE = "default@2", "default@1"
CHOSEN: dict[str, Assignment] = {NEW: "drawn", BEFORE: "held_back"}


def promotion(adapter: str, minutes: float, **fields: Any) -> Promotion:
    given = {"promotion_id": f"{adapter} {minutes}", "policy": "default", "adapter": adapter, "move": "promoted", "reason": "t", "by": "ann",
             "at": T0 + timedelta(minutes=minutes)}  # fmt: skip
    return Promotion.model_validate(given | fields)


def people(adapter: str, count: int, liked: float, minutes: float = 10) -> list[Label]:
    """So many conversations, of which that part is liked."""
    at = T0 + timedelta(minutes=minutes)
    shared: dict[str, Any] = {
        "policy": "default", "adapter": adapter, "assignment": CHOSEN[adapter], "outcome": "completed",
        "messages": (Message(role="user", content="hi"),), "answer": "a", "episode_at": at, "first_feedback_at": at, "newest_feedback_at": at,
    }  # fmt: skip
    return [
        Label(episode_id=f"{adapter} {minutes} {n}", conversation_id=f"{adapter} {minutes} {n}", verdict=float(n < liked * count),
              votes=(Vote(feedback_id=f"f{n}", user_id=f"u{n}", kind="thumb", value=float(n < liked * count), at=at),), **shared)
        for n in range(count)
    ]  # fmt: skip


def answers(adapter: str, count: int, text: str = "Owls are {} birds of the night.", **fields: Any) -> list[Episode]:
    at = T0 + timedelta(minutes=10)
    shared: dict[str, Any] = {"adapter": adapter, "assignment": CHOSEN[adapter], "started_at": at, "ended_at": at} | fields
    return [
        Episode(episode_id=f"{adapter} {n} {text}", user_id=f"{fields} {n}", messages=(Message(role="user", content=f"question {n}"),),
                answer=text.format(n), **shared)
        for n in range(count)
    ]  # fmt: skip


def attested(passed: bool, minutes: float, adapter: str = NEW) -> Attestation:
    return Attestation(replica="r-2", adapter=adapter, adapter_sha256="0" * 64, passed=passed, reason="vLLM cannot load it", load_ms=1.0,
                       at=T0 + timedelta(minutes=minutes))  # fmt: skip


def after(
    *events: Event, hours: float = 1.0, share: float | None = 0.95, settings: PromotionSettings = SETTINGS,
    tell: Callable[[Sequence[GuardFinding]], None] = lambda _: None,
) -> PromotionMove | None:  # fmt: skip
    observed = PromotionEvidence("default", episodes_kept=1000)
    for event in (promotion(BEFORE, 0), promotion(NEW, 5, canary_share=share), *events):
        observed.note(event)
    return next_move(observed, settings, T0 + timedelta(minutes=5, hours=hours), tell)


def test_a_new_production_that_people_like_less_than_the_one_before_goes_back_with_the_evidence() -> None:
    move = after(*people(NEW, 400, 0.4), *people(BEFORE, 60, 0.8))
    assert move is not None
    assert (move.move, move.evidence["before"], move.evidence["candidate"]["labels"]) == ("rolled_back", BEFORE, 400)
    assert move.evidence["harm_high"] < 0


def test_what_people_said_before_the_promotion_does_not_count() -> None:
    assert after(*people(NEW, 400, 0.4, minutes=1), *people(BEFORE, 60, 0.8, minutes=1)) is None


@pytest.mark.parametrize("liked", [0.8, 0.7])
def test_one_that_is_as_good_or_not_surely_worse_stays(liked: float) -> None:
    assert after(*people(NEW, 400, liked), *people(BEFORE, 20, 0.8)) is None


def test_one_whose_answers_fail_goes_back_whatever_people_say() -> None:
    failing = [*answers(NEW, 100, outcome="failed"), *answers(NEW, 300), *answers(BEFORE, 60)]
    move = after(*failing, *people(NEW, 400, 1.0), *people(BEFORE, 20, 0.5))
    assert move is not None
    assert move.move == "rolled_back"
    assert "25.0% of its conversations fail" in move.reason


def test_signs_of_hacking_in_what_people_were_answered_take_it_back() -> None:
    move = after(*answers(NEW, 100, "Great question! Great question! Great question! Great question!"), *answers(BEFORE, 70))
    assert move is not None
    assert move.move == "rolled_back"
    assert {finding["rule"] for finding in move.evidence["hacking"]} >= {"repetition"}
    assert (
        after(*answers(NEW, 100, "Great question! Great question! Great question! Great question!"), *answers(BEFORE, 30)) is None
    )  # too few to say


def test_tool_calls_that_fail_more_than_before_take_it_back() -> None:
    tool = {"type": "function", "function": {"name": "brew", "parameters": {"type": "object", "required": ["leaf"]}}}

    def calling(adapter: str, arguments: str) -> list[Episode]:
        return answers(adapter, 70, tools=(tool,), tool_calls=({"id": "c", "function": {"name": "brew", "arguments": arguments}},))

    move = after(*calling(NEW, "{}"), *calling(BEFORE, '{"leaf": "green"}'))
    assert move is not None
    assert (move.move, [finding["rule"] for finding in move.evidence["hacking"]]) == ("rolled_back", ["tools"])
    told: list[GuardFinding] = []
    assert after(*calling(NEW, '{"leaf": "green"}'), *calling(BEFORE, "{}"), tell=told.extend) is None
    assert [(found.value, found.reference) for found in told if found.rule == "tools"] == [(0.0, 1.0)]


def test_one_replica_that_cannot_serve_it_takes_it_back_everywhere() -> None:
    move = after(attested(False, 6), share=None)  # whether or not anything is held back
    assert move is not None
    assert (move.move, move.evidence) == ("rolled_back", {"failed": {"r-2": "vLLM cannot load it"}})
    assert after(attested(False, 4)) is None  # before the promotion
    assert after(attested(False, 6), attested(True, 7)) is None  # it was busy, and has proved it since
    assert after(attested(False, 6, BEFORE)) is None
    assert after(attested(False, 6), hours=49, share=None) is None  # what has served for long does not go because a replica is broken


def test_when_its_time_is_over_it_answers_all_and_no_one_watches_it_any_more() -> None:
    labels = [*people(NEW, 400, 0.8), *people(BEFORE, 20, 0.8)]
    move = after(*labels, hours=48)
    assert move is not None
    assert (move.move, move.canary_share, move.evidence["after"]["production"]["labels"]) == ("promoted", 1.0, 20)
    ended = promotion(NEW, 60 * 48, by="tidemill", canary_share=1.0)
    assert after(*labels, ended, hours=49) is None


def test_harm_that_is_found_as_its_time_ends_still_takes_it_back() -> None:
    move = after(*people(NEW, 400, 0.4), *people(BEFORE, 60, 0.8), hours=100)
    assert move is not None
    assert move.move == "rolled_back"


def test_what_a_person_promoted_to_all_is_held_back_from_some() -> None:
    move = after(share=None)
    assert move is not None
    assert (move.move, move.canary_share) == ("promoted", 0.95)
    assert after(share=None, settings=PromotionSettings(held_back_share=0)) is None
    assert after(share=None, hours=72) is None


def test_it_can_be_turned_off_and_what_came_back_is_not_watched() -> None:
    harm = [*people(NEW, 400, 0.4), *people(BEFORE, 60, 0.8), attested(False, 6)]
    assert after(*harm, settings=PromotionSettings(watch_h=0)) is None
    assert PromotionSettings(watch_h=0).promoted_share == PromotionSettings(held_back_share=0).promoted_share == 1.0
    back = promotion(NEW, 7, move="rolled_back")
    assert after(*harm, back, attested(False, 8, BEFORE)) is None
