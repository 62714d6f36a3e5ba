"""What a canary shows, and whose turn it is at night."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from actor.promotion.canary import decide, prior_of, side_of, vote_of
from actor.promotion.candidate_trials import Trials
from actor.promotion.confidence_sequence import Prior, Side
from actor.promotion.nightly_schedule import last_due, next_candidate
from actor.promotion.promotion_evidence import PromotionEvidence
from actor.promotion.promotion_settings import PromotionSettings
from actor.promotion.promotion_stages import AdapterStanding, fold
from streams.core.events import AdapterVersion, Artifact, Attestation, Episode, Label, Message, Promotion, Vote

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = PromotionSettings(min_canary_labels=50, max_canary_labels=1000, max_canary_h=48)
NO_FAILURES = (Side(500, 0.0), Side(500, 0.0))
NOBODY: Any = None


def label(number: int, verdict: float | None = 1.0, adapter: str | None = "default@2", conversation: str | None = None, user: str | None = None,
          said: str = "hi", minutes: float = 0, feedback_minutes: float | None = None, **fields: Any) -> Label:  # fmt: skip
    at, fed = T0 + timedelta(minutes=minutes), T0 + timedelta(minutes=minutes if feedback_minutes is None else feedback_minutes)
    votes = (
        (
            Vote(
                feedback_id=f"f{number}",
                user_id=user or ("ann" if conversation is None else f"u-{conversation}"),
                kind="thumb",
                value=verdict,
                at=fed,
            ),
        )
        if verdict is not None
        else ()
    )
    return Label(episode_id=f"e{number}", policy="default", conversation_id=conversation, adapter=adapter, outcome="completed", verdict=verdict,
                 messages=(Message(role="user", content=said),), answer="a", votes=votes, episode_at=at, first_feedback_at=fed,
                 newest_feedback_at=fed, **({"assignment": "drawn"} | fields))  # fmt: skip


def side(*labels: Label, adapter: str | None = "default@2", **when: datetime) -> Side:
    return side_of([vote for each in labels if (vote := vote_of(each)) is not None], adapter, **when)


def test_a_conversation_has_one_voice_its_first() -> None:
    assert side(label(1, 0.0, conversation="c", minutes=2), label(2, 1.0, conversation="c", minutes=1), label(3, 1.0, conversation="d")) == Side(
        2, 2.0
    )


def test_without_a_conversations_name_it_is_who_votes_and_how_it_began() -> None:
    assert side(label(1), label(2), label(3, user="bob"), label(4, said="ho")) == Side(3, 3.0)


def test_only_answers_of_that_side_and_time_count_and_withdrawn_verdicts_do_not() -> None:
    labels = [label(n, conversation=f"c{n}", minutes=n, adapter=adapter) for n, adapter in enumerate(("default@2", None, "default@2", "default@1"))]
    labels.append(label(9, None, conversation="c9", minutes=9))
    assert side(*labels, since=T0 + timedelta(minutes=1)) == Side(1, 1.0)
    assert side(*labels, until=T0 + timedelta(minutes=1)) == Side(1, 1.0)
    assert side(*labels, adapter=None) == Side(1, 1.0)


def test_the_guess_at_both_sides_is_what_people_said_of_production_before() -> None:
    votes = [vote for n in range(40) if (vote := vote_of(label(n, float(n % 4 == 0), None, f"c{n}", minutes=n))) is not None]
    assert prior_of(votes, None, T0 + timedelta(minutes=40)) == Prior(0.25, 20.0)
    assert prior_of(votes, None, T0 + timedelta(minutes=19)) == Prior()
    assert prior_of(votes, "default@2", T0 + timedelta(minutes=40)) == Prior()


@pytest.mark.parametrize(("candidate", "production", "hours", "move"), [
    (Side(200, 160.0), Side(1800, 900.0), 1, "promoted"),
    (Side(200, 60.0), Side(1800, 900.0), 1, "rolled_back"),
    (Side(200, 100.0), Side(1800, 900.0), 1, None),
    (Side(200, 100.0), Side(1800, 900.0), 48, "rejected"),
    (Side(1000, 500.0), Side(9000, 4500.0), 1, "rejected"),
    (Side(1000, 800.0), Side(9000, 4500.0), 99, "promoted"),
    (Side(), Side(), 1, None),
])  # fmt: skip
def test_better_is_promoted_worse_rolled_back_and_neither_rejected_when_the_exposure_is_used_up(
    candidate: Side, production: Side, hours: float, move: str | None
) -> None:
    assert decide(candidate, production, NO_FAILURES, Prior(0.5, 20), hours, SETTINGS).move == move


def test_harm_needs_no_minimum_of_exposure_and_a_promotion_does() -> None:
    assert decide(Side(25, 1.0), Side(200, 160.0), NO_FAILURES, Prior(0.8, 20), 0.1, SETTINGS).move == "rolled_back"
    assert decide(Side(25, 25.0), Side(200, 40.0), NO_FAILURES, Prior(0.2, 20), 0.1, SETTINGS).move is None
    fewer = SETTINGS.model_copy(update={"min_canary_labels": 25})
    assert decide(Side(25, 25.0), Side(200, 40.0), NO_FAILURES, Prior(0.2, 20), 0.1, fewer).move == "promoted"


def test_what_is_better_is_promoted_only_when_every_replica_has_attested_it() -> None:
    observed, settings = PromotionEvidence("default", 10), SETTINGS.model_copy(update={"min_replicas": 1})
    trials = Trials(settings, "default", NOBODY, NOBODY, (), "")
    for event in (adapter(2), *(move("default@2", kind, 0, canary_share=0.5) for kind in ("candidate", "shadow", "canary"))):
        observed.note(event)
    for n in range(600):
        liked, side_of_it = float(n % 10 < (9 if n % 2 else 3)), "default@2" if n % 2 else None
        observed.note(label(n, liked, side_of_it, f"c{n}", minutes=1))
    now = T0 + timedelta(minutes=30)

    def attests(replica: str, name: str = "default@2") -> None:
        observed.note(Attestation(replica=replica, adapter=name, adapter_sha256="0" * 64, passed=True, reason="attested", load_ms=1.0, at=now))

    trial = observed.standing.trial
    assert trial is not None
    attests("r")
    attests("new", "default@1")  # it has come since, and is still loading the candidate
    assert trials.next(observed, trial, now) is None
    attests("new")
    promoted = trials.next(observed, trial, now)
    assert promoted is not None
    assert (promoted.move, promoted.canary_share) == ("promoted", 0.95)


def test_an_uplift_may_be_asked_for() -> None:
    sides = Side(1000, 580.0), Side(9000, 4500.0)
    assert decide(*sides, NO_FAILURES, Prior(0.5, 20), 1, SETTINGS).move == "promoted"
    assert decide(*sides, NO_FAILURES, Prior(0.5, 20), 1, SETTINGS.model_copy(update={"min_uplift": 0.05})).move == "rejected"


def test_a_candidate_whose_answers_fail_more_often_is_stopped_whatever_people_say() -> None:
    decision = decide(Side(200, 160.0), Side(1800, 900.0), (Side(200, 20.0), Side(1800, 5.0)), Prior(), 1, SETTINGS)
    assert decision.move == "rolled_back"
    assert "10.0% of its conversations fail" in decision.reason


def episode(number: int, minutes: float = 0, **fields: Any) -> Episode:
    at = T0 + timedelta(minutes=minutes)
    given = {
        "episode_id": f"e{number}",
        "messages": ({"role": "user", "content": f"question {number}"},),
        "answer": "a",
        "started_at": at,
        "ended_at": at,
        "assignment": "drawn",
    }
    return Episode.model_validate(given | fields)


def test_failures_are_counted_since_the_canary_began() -> None:
    observed = PromotionEvidence("default", episodes_kept=3)  # fewer than there are: none may be forgotten
    for n in range(10):
        observed.note(episode(n, n, adapter="default@2", outcome="failed" if n % 2 else "completed"))
    assert observed.failures("default@2", T0 + timedelta(minutes=4)) == Side(6, 3.0)
    assert observed.failures("default@2", T0 + timedelta(minutes=3, seconds=1)) == Side(6, 3.0)
    assert observed.failures(None, T0) == Side()


def test_recent_questions_come_newest_first_each_once_and_without_tools() -> None:
    observed = PromotionEvidence("default", episodes_kept=10)
    asked = {"messages": ({"role": "user", "content": "again"},)}
    other = [episode(4, 9, tools=({"type": "function"},)), episode(5, 8, policy="other"), episode(6, 7, messages=({"role": "tool", "content": "4"},))]
    for each in (episode(1, 1), episode(2, 5, **asked), episode(3, 3, **asked), *other):
        observed.note(each)
    assert [question.messages[0].text for question in observed.questions(5)] == ["again", "question 1"]
    assert len(observed.questions(1)) == 1


def test_what_production_answered_since_is_found_oldest_first_without_failures() -> None:
    observed = PromotionEvidence("default", episodes_kept=10)
    for each in (episode(1, 1), episode(2, 3), episode(3, 2), episode(4, 4, outcome="failed"), episode(5, 5, adapter="default@2")):
        observed.note(each)
    assert [each.episode_id for each in observed.answered_since(T0 + timedelta(minutes=2), None, 9)] == ["e3", "e2"]


def test_a_verdict_that_is_withdrawn_leaves_no_voice() -> None:
    observed = PromotionEvidence("default", episodes_kept=10)
    observed.note(label(1))
    assert (len(observed.votes), len(observed.recent_labels)) == (1, 1)
    observed.note(label(1, None))
    assert (observed.votes, observed.recent_labels) == ([], [])


def test_the_log_read_twice_comes_to_the_same() -> None:
    events = [label(1), label(2, 0.0, user="bob"), adapter(1), move("default@1", "candidate", 5)]
    once, twice = PromotionEvidence("default", 10), PromotionEvidence("default", 10)
    for event in events:
        once.note(event)
    for event in [*events, *events]:
        twice.note(event)
    assert (once.standing, once.votes, once.adapters) == (twice.standing, twice.votes, twice.adapters)


@pytest.mark.parametrize(("now", "due"), [
    ("2026-01-15T02:00:00+00:00", "2026-01-15T02:00:00+00:00"),
    ("2026-01-15T01:59:59+00:00", "2026-01-14T02:00:00+00:00"),
    ("2026-07-15T01:30:00+00:00", "2026-07-15T01:00:00+00:00"),
])  # fmt: skip
def test_three_in_the_morning_is_that_of_the_zone_in_summer_and_in_winter(now: str, due: str) -> None:
    assert last_due("0 3 * * *", "Europe/Berlin", datetime.fromisoformat(now)) == datetime.fromisoformat(due)


def adapter(version: int, hours: float = 0, policy: str = "default") -> AdapterVersion:
    artifact = Artifact(path="a", sha256="0" * 64, size_bytes=1)
    return AdapterVersion(policy=policy, version=version, artifact=artifact, base_fingerprint="1" * 64, rank=8, targets=("q_proj",),
                          reward_model_version=1, step=1, created_at=T0 + timedelta(hours=hours))  # fmt: skip


def move(name: str, kind: str, hours: float, **fields: Any) -> Promotion:
    given = {
        "promotion_id": f"{name} {kind} {hours}",
        "policy": "default",
        "adapter": name,
        "move": kind,
        "reason": "t",
        "at": T0 + timedelta(hours=hours),
    }
    return Promotion.model_validate(given | fields)


def turn(events: list[Promotion], adapters: list[AdapterVersion], due_hours: float, tries: int = 2) -> int | None:
    found = next_candidate(fold("default", events), adapters, T0 + timedelta(hours=due_hours), tries)
    return found.version if found else None


def test_the_newest_that_was_there_when_the_candidates_were_collected_has_its_turn() -> None:
    adapters = [adapter(1), adapter(2, 5), adapter(3, 6), adapter(4, 9), adapter(9, 5, policy="other")]
    assert turn([], adapters, 8) == 3
    assert turn([], adapters, -1) is None


def test_after_a_failure_the_next_older_one_has_its_turn_so_often_a_night() -> None:
    adapters = [adapter(version) for version in (1, 2, 3)]
    night = [move("default@3", "candidate", 8), move("default@3", "rejected", 9)]
    assert turn(night[:1], adapters, 8) is None
    assert turn(night, adapters, 8) == 2
    assert turn(night, adapters, 8, tries=1) is None
    assert turn([*night, move("default@2", "candidate", 10), move("default@2", "rejected", 11)], adapters, 8) is None


def test_the_next_night_tries_nothing_older_than_what_was_tried_and_nothing_that_was_rolled_back() -> None:
    adapters = [adapter(version) for version in (1, 2, 3)]
    night = [move("default@2", "candidate", 8), move("default@2", "rejected", 9)]
    assert turn(night, adapters[:2], 32) is None
    assert turn(night, adapters, 32) == 3
    by_hand = [move("default@3", "promoted", 1, by="ann"), move("default@3", "rolled_back", 2, by="ann")]
    assert turn(by_hand, adapters, 8) == 2
    assert turn([], [], 8) is None
    assert next_candidate(AdapterStanding("default", production="default@3"), adapters, T0 + timedelta(hours=9), 3) is None
