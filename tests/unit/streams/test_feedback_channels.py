"""What counts on a label: channels, their weights, and signals that say how an answer did."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings.config import load
from streams.core.errors import ConfigError
from streams.core.events import Evidence, Feedback, FeedbackKind, Label, Message, Outcome
from streams.join.episode_state import KnownEpisode
from streams.join.feedback_join import label_of
from streams.join.join_settings import JoinSettings

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SIGNALS = ["copied", "retried", "abandoned", "asked-again", "test-passed", "test-failed", "critic-good", "waved"]


def said(number: int, user_id: str = "ann", hours: float = 0, **carries: Any) -> Feedback:
    kind = {"thumb": "thumb", "rating": "rating", "signal": "signal", "over": "comparison", "text": "correction"}[next(iter(carries))]
    at = T0 + timedelta(hours=hours)
    return Feedback(feedback_id=f"f{number}", episode_id="e", user_id=user_id, kind=FeedbackKind(kind), at=at, **carries)


def labelled(*feedback: Feedback, outcome: Outcome = Outcome.COMPLETED, settings: JoinSettings | None = None) -> Label:
    known = KnownEpisode(
        policy="p", tenant="t", adapter=None, outcome=outcome, messages=(Message(role="user", content="hello"),), answer="hi", ended_at=T0
    )
    return label_of("e", known, feedback, settings or JoinSettings())


def channels(label: Label) -> dict[str, Evidence]:
    return {e.channel: e for e in label.evidence or ()}


def test_a_thumb_and_a_rating_share_the_weight_of_one_label() -> None:
    found = channels(labelled(said(1, "ann", thumb="up"), said(2, "bob", rating=2)))
    assert {name: (e.value, e.weight, e.feedback_ids) for name, e in found.items()} == {
        "thumbs": (1.0, 0.5, ("f1",)),
        "ratings": (0.25, 0.5, ("f2",)),
    }


def test_what_a_person_does_counts_less_than_what_they_say_and_is_told_apart() -> None:
    label = labelled(said(1, signal="copied"), said(2, "bob", signal="retried"), said(3, "bob", signal="asked-again"))
    assert label.verdict is None
    implicit = channels(label)["implicit"]
    assert implicit.value == pytest.approx(0.5 / 1.5)  # ann +0.5; bob -1
    assert implicit.weight == pytest.approx(0.2 * 1.5 / 2)
    assert implicit.feedback_ids == ("f1", "f2", "f3")


def test_signals_that_cancel_each_other_say_nothing() -> None:
    assert labelled(said(1, signal="copied"), said(2, signal="retried")).evidence == ()


def test_one_person_cannot_pile_up_more_than_one_voice_of_signals() -> None:
    label = labelled(said(1, signal="retried"), said(2, signal="abandoned"), said(3, signal="asked-again"))
    assert channels(label)["implicit"].weight == pytest.approx(0.2)


def test_a_tools_newest_outcome_replaces_its_older_ones() -> None:
    label = labelled(said(1, "ci", hours=1, signal="test-failed"), said(2, "ci", hours=2, signal="test-passed"))
    outcome = channels(label)["outcomes"]
    assert (outcome.value, outcome.weight, outcome.feedback_ids) == (1.0, 0.5, ("f2",))


def test_a_signal_that_nobody_declared_counts_for_nothing_and_is_kept() -> None:
    label = labelled(said(1, signal="waved"))
    assert label.evidence == ()
    assert label.votes[0].signal == "waved"


def test_a_critic_never_touches_the_verdict() -> None:
    label = labelled(said(1, thumb="up"), said(2, "critic", signal="critic-bad"))
    assert label.verdict == 1.0
    assert channels(label)["critic"].value == 0.0


def test_comparisons_and_corrections_carry_a_weight_and_no_value() -> None:
    found = channels(labelled(said(1, over="other"), said(2, text="rather this")))
    assert {name: (e.value, e.weight) for name, e in found.items()} == {"comparisons": (None, 1.0), "corrections": (None, 1.0)}


def test_an_infrastructure_fault_is_no_evidence_whatever_is_said() -> None:
    assert labelled(said(1, thumb="down"), said(2, signal="retried"), outcome=Outcome.FAILED).evidence == ()


def test_weights_are_settings_and_zero_silences_a_channel() -> None:
    settings = load(None, ("join.channels.implicit=0", "join.outcomes.linted=0.5", "join.channels.outcomes=1"), {}).join
    label = labelled(said(1, signal="copied"), said(2, "ci", signal="linted"), settings=settings)
    assert [(e.channel, e.value, e.weight) for e in label.evidence or ()] == [("outcomes", 1.0, 0.5)]
    assert settings.channels["thumbs"] == 1.0
    assert settings.outcomes["test-passed"] == 1.0


@pytest.mark.parametrize("wrong", ["join.channels.telepathy=1", "join.channels.thumbs=-1", "join.implicit.copied=2"])
def test_a_weight_that_means_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError):
        load(None, (wrong,), {})


SAYINGS = st.one_of(
    st.sampled_from([{"thumb": "up"}, {"thumb": "down"}, {"over": "x"}, {"text": "so"}]),
    st.builds(lambda r: {"rating": r}, st.integers(1, 5)),
    st.builds(lambda s: {"signal": s}, st.sampled_from(SIGNALS)),
)


@given(st.lists(st.tuples(SAYINGS, st.sampled_from(["ann", "bob", "ci"]), st.integers(0, 3)), min_size=1, max_size=12), st.randoms())
def test_any_order_of_the_same_feedback_gives_the_same_evidence(history: list[tuple[dict[str, Any], str, int]], random: Any) -> None:
    feedback = [said(n, user, hours, **carries) for n, (carries, user, hours) in enumerate(history)]
    label = labelled(*feedback)
    random.shuffle(feedback)
    assert labelled(*feedback) == label
    assert {i for e in label.evidence or () for i in e.feedback_ids} <= {v.feedback_id for v in label.votes}
    people = [e for e in label.evidence or () if e.channel in ("thumbs", "ratings")]
    assert sum(e.weight for e in people) == pytest.approx(1.0 if people else 0.0)
    assert all(e.weight <= JoinSettings().channels[e.channel] for e in label.evidence or ())
