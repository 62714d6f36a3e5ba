"""The join as a fold: whatever the order and however often, the same label."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.core.errors import InvalidEvent
from streams.core.events import Episode, Feedback, FeedbackKind, Label, Message, Outcome
from streams.join.episode_state import ArrivedFeedback
from streams.join.feedback_join import FeedbackJoin, StatesInMemory
from streams.join.join_settings import JoinSettings

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = JoinSettings(window_days=7, most_feedback=50)


class Bench:
    """A join over a dict, the newest label of each episode, and what was set aside."""

    def __init__(self, settings: JoinSettings = SETTINGS) -> None:
        self.state = StatesInMemory()
        self.aside: list[tuple[ArrivedFeedback, InvalidEvent]] = []
        self.join = FeedbackJoin(self.state, settings, lambda arrived, error: self.aside.append((arrived, error)))
        self.labels: dict[str, Label] = {}
        self.published = 0

    def take(self, event: Episode | Feedback, hours: float | None = None) -> Label | None:
        """It arrives after so many hours; without them feedback arrives as it is given, an episode at once."""
        given = event.at if isinstance(event, Feedback) else T0
        now = given if hours is None else T0 + timedelta(hours=hours)
        label = self.join.on_episode(event, now) if isinstance(event, Episode) else self.join.on_feedback(event, now)
        if label is not None:
            self.labels[label.episode_id] = label
            self.published += 1
        return label

    @property
    def reasons(self) -> list[str]:
        return [error.reason for _, error in self.aside]


def episode(episode_id: str = "e", outcome: Outcome = Outcome.COMPLETED, **more: Any) -> Episode:
    return Episode(
        episode_id=episode_id, messages=(Message(role="user", content="hello"),), answer="hi", outcome=outcome, started_at=T0, ended_at=T0, **more
    )


def feedback(feedback_id: str, hours: float = 0, episode_id: str = "e", user_id: str = "ann", **carries: Any) -> Feedback:
    kind = next(k for k in ("thumb", "rating", "over", "signal", "retracts", "text") if k in carries)
    named = {"over": "comparison", "retracts": "retraction", "text": "comment"}.get(kind, kind)
    return Feedback(
        feedback_id=feedback_id,
        episode_id=episode_id,
        user_id=user_id,
        kind=FeedbackKind(carries.pop("kind", named)),
        at=T0 + timedelta(hours=hours),
        **carries,
    )


def test_a_thumb_makes_a_label_that_carries_the_episode() -> None:
    bench = Bench()
    assert bench.take(episode(adapter="default@7", policy="p", tenant="t", conversation_id="c-1")) is None
    label = bench.take(feedback("f", thumb="up"))
    assert label is not None
    assert (label.verdict, label.policy, label.tenant, label.adapter, label.answer) == (1.0, "p", "t", "default@7", "hi")
    assert label.conversation_id == "c-1"
    assert label.messages[0].text == "hello"
    assert label.feedback_ids == ("f",)
    assert (label.episode_at, label.first_feedback_at, label.newest_feedback_at) == (T0, T0, T0)


def test_early_feedback_waits_for_its_episode() -> None:
    bench = Bench()
    assert bench.take(feedback("f", thumb="down")) is None
    assert bench.take(feedback("g", thumb="up", user_id="bob")) is None
    label = bench.take(episode())
    assert label is not None
    assert label.verdict == 0.5


def test_late_feedback_counts_within_the_window_and_not_a_moment_longer() -> None:
    bench = Bench()
    bench.take(episode())
    label = bench.take(feedback("f", hours=24 * 7, thumb="up"), hours=24 * 7)
    assert label is not None
    assert bench.take(feedback("g", hours=24 * 7 + 0.001, thumb="up", user_id="bob")) is None
    assert bench.take(feedback("h", hours=1, thumb="up", user_id="bob"), hours=24 * 7 + 0.001) is None
    assert bench.reasons == ["expired", "expired"]
    assert [arrived.feedback.feedback_id for arrived, _ in bench.aside] == ["g", "h"]


def test_a_duplicate_is_dropped_and_counted() -> None:
    bench = Bench()
    bench.take(episode())
    bench.take(feedback("f", thumb="up"))
    assert bench.take(feedback("f", thumb="up")) is None
    assert bench.take(episode()) is None
    assert (bench.join.tally.duplicate_feedback, bench.join.tally.duplicate_episodes, len(bench.join.tally.joined)) == (1, 1, 1)
    assert bench.published == 1


def test_a_duplicate_that_waits_is_dropped_too() -> None:
    bench = Bench()
    bench.take(feedback("f", thumb="up"))
    bench.take(feedback("f", thumb="up"))
    label = bench.take(episode())
    assert label is not None
    assert label.feedback_ids == ("f",)
    assert bench.join.tally.duplicate_feedback == 1


def test_a_changed_thumb_replaces_by_event_time_not_by_arrival() -> None:
    bench = Bench()
    bench.take(episode())
    bench.take(feedback("new", hours=2, thumb="down"))
    label = bench.take(feedback("old", hours=1, thumb="up"))
    assert label is not None
    assert label.verdict == 0
    assert [vote.feedback_id for vote in label.votes] == ["new"]
    assert label.superseded == ("old",)


def test_at_the_same_time_the_greater_feedback_id_wins() -> None:
    for order in (["a", "b"], ["b", "a"]):
        bench = Bench()
        bench.take(episode())
        for name in order:
            bench.take(feedback(name, thumb="up" if name == "b" else "down"))
        assert bench.labels["e"].verdict == 1


def test_a_retraction_withdraws_even_when_it_comes_first() -> None:
    up, back = feedback("f", hours=1, thumb="up"), feedback("r", hours=2, retracts="f")
    for order in ([up, back], [back, up]):
        bench = Bench()
        bench.take(episode())
        for each in order:
            bench.take(each)
        assert bench.labels["e"].verdict is None
        assert bench.labels["e"].votes == ()
        assert set(bench.labels["e"].feedback_ids) == {"f", "r"}


def test_a_retraction_does_not_bring_back_what_was_replaced() -> None:
    bench = Bench()
    for each in (episode(), feedback("a", hours=1, thumb="up"), feedback("b", hours=2, thumb="down"), feedback("r", hours=3, retracts="b")):
        bench.take(each)
    assert bench.labels["e"].verdict is None


def test_nobody_can_take_back_what_another_said() -> None:
    bench = Bench()
    for each in (episode(), feedback("a", thumb="up"), feedback("r", user_id="eve", retracts="a")):
        bench.take(each)
    assert bench.labels["e"].verdict == 1
    assert bench.labels["e"].superseded == ("r",)


def test_each_person_has_one_voice_and_their_newest_number_speaks() -> None:
    bench = Bench()
    for each in (
        episode(),
        feedback("a", hours=1, thumb="up"),
        feedback("b", hours=2, rating=1),
        feedback("c", hours=1, user_id="bob", rating=2),
    ):
        bench.take(each)
    assert bench.labels["e"].verdict == (0 + 0.25) / 2
    assert len(bench.labels["e"].votes) == 3
    assert bench.labels["e"].first_feedback_at == T0 + timedelta(hours=1)
    assert bench.labels["e"].newest_feedback_at == T0 + timedelta(hours=2)


def test_words_comparisons_and_signals_are_votes_without_a_number() -> None:
    bench = Bench()
    for each in (
        episode(),
        feedback("a", text="nice"),
        feedback("b", text="hi there", kind="correction"),
        feedback("c", over="e2"),
        feedback("d", over="e3"),
        feedback("f", signal="copied"),
        feedback("g", signal="retried"),
    ):
        bench.take(each)
    label = bench.labels["e"]
    assert label.verdict is None
    assert {vote.feedback_id: vote.value for vote in label.votes} == dict.fromkeys("abcdfg")
    assert {vote.over for vote in label.votes} == {None, "e2", "e3"}


def test_what_a_person_says_next_stands_on_the_label_in_their_words_and_is_no_number() -> None:
    bench = Bench()
    bench.take(feedback("reply-1", text="No, in French.", kind="reply"))
    label = bench.take(episode())
    assert label is not None
    assert [(vote.kind, vote.text, vote.value) for vote in label.votes] == [("reply", "No, in French.", None)]
    assert (label.verdict, label.evidence) == (None, ())


def test_a_newer_comment_replaces_the_older_of_the_same_person() -> None:
    bench = Bench()
    for each in (episode(), feedback("a", hours=1, text="bad"), feedback("b", hours=2, text="good"), feedback("c", user_id="bob", text="so so")):
        bench.take(each)
    assert [vote.text for vote in bench.labels["e"].votes] == ["so so", "good"]


@pytest.mark.parametrize(("outcome", "verdict"), [("failed", None), ("cancelled", None), ("truncated", 0.0), ("completed", 0.0)])
def test_an_infrastructure_fault_is_censored(outcome: str, verdict: float | None) -> None:
    bench = Bench()
    bench.take(episode(outcome=Outcome(outcome)))
    label = bench.take(feedback("f", thumb="down"))
    assert label is not None
    assert label.verdict == verdict
    assert label.votes[0].value == 0


def test_feedback_that_finds_no_episode_expires_and_says_so() -> None:
    bench = Bench()
    bench.take(feedback("f", thumb="up"), hours=0)
    bench.take(feedback("g", thumb="up"), hours=10)
    bench.join.expire(T0 + timedelta(days=7))
    assert bench.aside == []
    bench.join.expire(T0 + timedelta(days=7, hours=1))
    assert [arrived.feedback.feedback_id for arrived, _ in bench.aside] == ["f"]
    assert "no episode e came" in str(bench.aside[0][1])
    label = bench.take(episode(), hours=24 * 7 + 2)
    assert label is not None
    assert label.feedback_ids == ("g",)
    bench.join.expire(T0 + timedelta(days=30))
    assert bench.reasons == ["expired"]
    bench.join.expire(T0 + timedelta(days=40))
    assert bench.state == {}, "nothing about the episode can be on the log any more"


def test_feedback_after_the_window_is_set_aside_at_once_whether_the_episode_was_closed_before_or_not() -> None:
    for closed_first in (True, False):
        bench = Bench()
        bench.take(episode(), hours=0)
        if closed_first:
            bench.join.expire(T0 + timedelta(days=8))
        bench.take(feedback("late", thumb="up"), hours=24 * 8)
        assert bench.reasons == ["expired"]
        assert bench.take(episode(), hours=24 * 9) is None, "sent again by an outbox: no new episode, which would make a label of its own"
        assert bench.join.tally.duplicate_episodes == 1
        with pytest.raises(InvalidEvent, match="there first"):
            bench.take(episode().model_copy(update={"answer": "another"}), hours=24 * 9)


def test_an_episode_that_comes_too_late_does_not_revive_its_feedback() -> None:
    bench = Bench()
    bench.take(feedback("f", thumb="up"), hours=0)
    assert bench.take(episode(), hours=24 * 7 + 1) is None
    assert bench.reasons == ["expired"]


def test_one_episode_takes_only_so_much_feedback() -> None:
    bench = Bench()
    bench.take(episode())
    for i in range(52):
        bench.take(feedback(f"f{i}", user_id=f"u{i}", thumb="up"))
    assert bench.reasons == ["too_many", "too_many"]
    assert len(bench.labels["e"].votes) == 50


WORDS = [{"text": "words"}, {"over": "x"}, {"over": "y"}, {"signal": "copied"}]
KINDS = st.sampled_from([{"thumb": "up"}, {"thumb": "down"}, {"rating": 1}, {"rating": 4}, *WORDS, "retract"])


@st.composite
def histories(draw: st.DrawFn) -> list[Episode | Feedback]:
    events: list[Episode | Feedback] = [episode(name, draw(st.sampled_from(list(Outcome)))) for name in ("e", "e2")]
    for number in range(draw(st.integers(0, 12))):
        carries = draw(KINDS)
        if carries == "retract":
            carries = {"retracts": f"f{draw(st.integers(0, 12).filter(number.__ne__))}"}
        events.append(
            feedback(
                f"f{number}",
                hours=draw(st.integers(-5, 24 * 8)),
                user_id=draw(st.sampled_from(["ann", "bob"])),
                episode_id=draw(st.sampled_from(["e", "e2", "lost"])),
                **carries,
            )
        )
    return events


def folded(events: Sequence[Episode | Feedback]) -> tuple[dict[str, Label], set[str]]:
    bench = Bench()
    for each in events:
        bench.take(each)
    bench.join.expire(T0 + timedelta(days=100))
    return bench.labels, {arrived.feedback.feedback_id for arrived, _ in bench.aside}


@given(histories(), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_neither_order_nor_repetition_changes_the_labels(events: list[Episode | Feedback], chance: random.Random) -> None:
    shuffled = events + chance.sample(events, len(events) // 2)
    chance.shuffle(shuffled)
    labels, aside = folded(events)
    assert folded(shuffled) == (labels, aside)


@given(histories())
@settings(max_examples=40, deadline=None)
def test_every_feedback_is_in_exactly_one_place(events: list[Episode | Feedback]) -> None:
    labels, aside = folded(events)
    joined = [i for label in labels.values() for i in label.feedback_ids]
    assert sorted([*joined, *aside]) == sorted(each.feedback_id for each in events if isinstance(each, Feedback))


def test_a_clock_that_is_ahead_does_not_outlive_a_later_change_of_mind() -> None:
    bench = Bench()
    bench.take(episode())
    bench.take(feedback("ahead", hours=20, thumb="up"), hours=1)
    label = bench.take(feedback("later", hours=2, thumb="down"), hours=2)
    assert label is not None
    assert label.verdict == 0.0
    assert label.newest_feedback_at == T0 + timedelta(hours=2)


def test_the_same_answer_sent_twice_is_a_duplicate_and_another_under_its_id_is_set_aside() -> None:
    bench = Bench()
    bench.take(episode(user_id="u-1"))
    assert bench.take(episode(user_id="u-1")) is None
    assert bench.join.tally.duplicate_episodes == 1
    for other in (episode(user_id="u-2"), episode(user_id="u-1", tenant="acme"), episode(user_id="u-1").model_copy(update={"answer": "ho"})):
        with pytest.raises(InvalidEvent) as refused:
            bench.take(other)
        assert refused.value.reason == "id_taken"
