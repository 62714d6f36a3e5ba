"""The replay buffer and the refit: what counts is what people say now, in whatever order it came."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reward.features.featurizer import Pair
from reward.fit.buffer_entry import BufferEntry
from reward.fit.replay_buffer import ReplayBuffer
from reward.settings import RewardSettings
from reward.trust.drift_alarm import Drift
from reward.updater.publishing_rule import PublishingRule
from reward.updater.refitter import Refitter
from streams.core.errors import InvalidEvent
from streams.core.events import FeedbackKind, Label, Message, Outcome, Vote

torch.set_num_threads(1)  # matrices this small are slower on two

START = datetime(2026, 1, 1, tzinfo=UTC)
CALM = Drift(0.0, alarm=False, since=None)
SMALL = RewardSettings(heads=3, folds=2, min_labels=4, min_each_verdict=1, buffer_labels=100)


class CountedLetters:
    """Features of an answer: how often each of six letters occurs."""

    fingerprint = "a" * 64
    blocks = ((6, 1.0),)

    def features(self, pairs: Sequence[Pair]) -> Tensor:
        return torch.tensor([[float(answer.count(letter)) for letter in "youtea"] for _, answer in pairs]).reshape(len(pairs), 6)


def label(number: int, verdict: float | None, answer: str = "", at: float = 0, votes: Sequence[tuple[str, str]] = (), folded: int = 1) -> Label:
    """``at`` in minutes; ``votes`` are (kind, text or episode)."""
    when = START + timedelta(minutes=at)
    cast = [
        Vote(
            feedback_id=f"fb-{number}-{i}",
            user_id="ada",
            kind=FeedbackKind(kind),
            text=what if kind == "correction" else None,
            over=what if kind == "comparison" else None,
            at=when,
        )
        for i, (kind, what) in enumerate(votes)
    ]
    return Label(
        episode_id=f"ep-{number}",
        policy="default",
        outcome=Outcome.COMPLETED,
        messages=(Message(role="user", content="tea?"),),
        answer=answer or ("you " * (number % 3) + "tea " * (number % 2)),
        verdict=verdict,
        votes=tuple(cast),
        superseded=tuple(f"old-{number}-{i}" for i in range(folded)),
        episode_at=START,
        first_feedback_at=START,
        newest_feedback_at=when,
    )


def refitter(*labels: Label, settings: RewardSettings = SMALL) -> Refitter:
    made = Refitter(settings, CountedLetters())
    made.absorb(made.prepare(labels))
    return made


def checksum(made: Refitter) -> str:
    model = made.refit().model
    assert model is not None
    return model.checksum()


TEN = [label(i, float(i % 3 == 1), at=i) for i in range(10)]


def test_a_retracted_thumb_leaves_no_trace_in_the_next_reward_model() -> None:
    assert checksum(refitter(*TEN, label(3, None, at=99, folded=2))) == checksum(refitter(*TEN[:3], *TEN[4:]))


def test_a_changed_thumb_counts_as_if_the_first_had_never_been() -> None:
    changed = label(3, 1.0, at=99, folded=2)
    assert checksum(refitter(*TEN, changed)) == checksum(refitter(*TEN[:3], changed, *TEN[4:])) != checksum(refitter(*TEN))


def test_an_older_label_that_comes_again_changes_nothing() -> None:
    withdrawn = label(3, None, at=99, folded=2)
    made = refitter(*TEN, withdrawn)
    assert made.absorb(made.prepare([TEN[3]])) == {}
    assert "ep-3" in made.buffer


def test_two_feedbacks_of_one_instant_are_ordered_by_how_many_were_folded_in() -> None:
    first, second = label(3, 0.0, at=5, folded=1), label(3, 1.0, at=5, folded=2)
    assert refitter(first, second).buffer.with_verdict()[0].verdict == refitter(second, first).buffer.with_verdict()[0].verdict == 1.0


labels_of_few_episodes = st.lists(
    st.builds(
        lambda number, verdict, at, votes: label(number, verdict, at=at, votes=votes, folded=at),
        st.integers(0, 5),
        st.sampled_from([0.0, 0.25, 1.0, None]),
        st.integers(0, 6),
        st.sampled_from([(), (("correction", "you are right"),), (("comparison", "ep-1"),)]),
    ),
    max_size=8,
)


@given(labels_of_few_episodes, st.randoms(use_true_random=False), st.integers(4, 12))
@settings(max_examples=60, deadline=None)
def test_any_order_and_duplication_of_the_same_labels_gives_the_same_next_version(more: list[Label], random: object, capacity: int) -> None:
    shape = SMALL.model_copy(update={"buffer_labels": 100})
    # one label per episode and rank: two labels of one rank would be two truths, which the join never publishes
    unique = list({(m.episode_id, m.newest_feedback_at): m for m in [*TEN, *more]}.values())
    shuffled = unique + unique[: len(unique) // 2]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert checksum(refitter(*unique, settings=shape)) == checksum(refitter(*shuffled, settings=shape))


def test_a_full_buffer_keeps_the_newest_of_both_verdicts() -> None:
    entries = [BufferEntry(f"ep-{i}", float(i in (0, 1)), 1, START + timedelta(minutes=i), torch.zeros(2)) for i in range(20)]
    kept = {e.episode_id for e in ReplayBuffer(6, entries).with_verdict()}
    assert kept == {"ep-0", "ep-1", "ep-16", "ep-17", "ep-18", "ep-19"}  # the two good ones are old, and all there are


def test_what_falls_out_of_the_buffer_is_reported_for_deletion() -> None:
    buffer = ReplayBuffer(2)
    entries = [BufferEntry(f"ep-{i}", 1.0, 1, START + timedelta(minutes=i), torch.zeros(2)) for i in range(3)]
    assert buffer.add(entries[:2]) == {"ep-0": entries[0], "ep-1": entries[1]}
    assert buffer.add(entries[2:]) == {"ep-2": entries[2], "ep-0": None}


def test_a_recovered_buffer_fits_the_same_model() -> None:
    made = Refitter(SMALL, CountedLetters())
    comparison = label(11, None, "you you", at=11, votes=[("comparison", "ep-2"), ("correction", "you and you")])
    stored = made.absorb(made.prepare([*TEN, comparison]))
    again = Refitter(SMALL, CountedLetters())
    again.recover([raw for raw in stored.values() if raw])
    assert checksum(again) == checksum(made)


def test_an_entry_survives_its_encoding_bit_for_bit() -> None:
    entry = BufferEntry("ep-1", None, 2, START, torch.randn(7).half(), (torch.randn(7).half(),), ("ep-9",), ("a1b2",), 0.25)
    assert BufferEntry.decode(entry.encode()).encode() == entry.encode()
    with pytest.raises(InvalidEvent):
        BufferEntry.decode(b'{"episode_id": "ep-1"}')


def test_a_correction_beats_what_it_corrects() -> None:
    plain = [label(i, float(i % 2), "e" * (i % 5) + "t", at=i) for i in range(12)]
    corrected = [label(20 + i, None, "tea", at=20 + i, votes=[("correction", "you and you")]) for i in range(6)]
    model = refitter(*plain, *corrected).refit().model
    assert model is not None
    better, worse = model.score(CountedLetters().features([((), "you and you"), ((), "tea")])).mean_N
    assert better > worse + 0.1


def test_corrections_count_in_the_share_that_their_giver_holds() -> None:
    corrected = [label(20 + i, None, f"tea {i}", at=60 * i, votes=[("correction", "you and you")]) for i in range(6)]
    thumbs = [each.model_copy(update={"votes": (Vote(feedback_id=f"t{n}", user_id=f"p{n}", kind=FeedbackKind.THUMB, value=each.verdict, at=START),)})
              for n, each in enumerate(TEN)]  # fmt: skip
    assert refitter(
        *thumbs, *corrected, settings=SMALL.model_copy(update={"weigh_reliability": False})
    ).refit().largest_person_share == pytest.approx(0.2)  # of 16 she gave 6
    assert refitter(
        *thumbs, *corrected, settings=SMALL.model_copy(update={"person_share": 0.9, "weigh_reliability": False})
    ).refit().largest_person_share == pytest.approx(6 / 16)
    assert refitter(*TEN).refit().largest_person_share is None


def test_a_comparison_waits_until_both_answers_are_known() -> None:
    waiting = label(30, None, "you you", at=30, votes=[("comparison", "ep-31")])
    assert len(refitter(*TEN, waiting).buffer.rows().better_PD) == 0
    assert len(refitter(*TEN, waiting, label(31, 0.0, at=31)).buffer.rows().better_PD) == 1


def test_the_first_version_needs_labels_of_both_verdicts() -> None:
    assert refitter(*[label(i, 0.0, at=i) for i in range(9)]).refit().result == "too_few"
    assert refitter(*TEN[:3]).refit().result == "too_few"
    assert refitter(*TEN).refit().result == "published"


def test_a_label_is_predicted_before_it_is_fitted_and_the_prediction_is_kept() -> None:
    made = refitter(*TEN)
    first = made.refit()
    assert first.evaluation.calibration.labels == 0  # nobody had predicted these
    made.published = first.model
    assert first.model is not None
    made.absorb(made.prepare([label(40, 1.0, "you you", at=40)]))
    said = float(first.model.score(CountedLetters().features([((), "you you")])).mean_N[0])
    second = made.refit()
    assert second.evaluation.calibration.labels == 1
    assert second.evaluation.calibration.brier == pytest.approx((1 - said) ** 2, abs=1e-4)
    made.published = second.model
    made.absorb(made.prepare([label(40, 0.0, "you you", at=41, folded=2)]))  # changed: now predicted with knowledge of the first thumb
    assert made.refit().evaluation.calibration.brier == pytest.approx(said**2, abs=1e-4)


def test_a_model_that_the_newest_labels_speak_against_is_not_published() -> None:
    made = refitter(*[label(i, float(i % 3 > 0), at=i) for i in range(60)])
    made.published = made.refit().model
    assert made.refit().result == "unchanged"
    turned = refitter(*[label(i, float(i % 3 == 0), at=i) for i in range(60)]).refit().model
    assert turned is not None
    newest = made.buffer.with_verdict(SMALL.publish_window_labels)
    assert PublishingRule(SMALL).decide(turned, made.published, newest, CALM, 0, erasure=False).result == "worse"
    assert PublishingRule(SMALL).decide(turned, made.published, newest, CALM, 0, erasure=True).result == "published"
    made.published = turned
    assert made.refit().result == "published"  # and the way back is open


def test_a_model_of_other_features_is_no_measure_for_ours() -> None:
    model = refitter(*TEN).refit().model
    other = CountedLetters()
    other.fingerprint = "b" * 64
    assert Refitter(SMALL, other, model).published is None
    assert Refitter(SMALL, CountedLetters(), model).published is model


def test_turns_of_one_conversation_and_labels_about_the_same_words_are_in_one_fold() -> None:
    asked, answer = Message(role="user", content="tea?"), "you like tea"
    first, again = label(1, 1.0, answer), label(2, 0.0, answer)  # the same words, in another conversation
    later = label(3, 1.0, "more").model_copy(
        update={"messages": (asked, Message(role="assistant", content=answer), Message(role="user", content="and then?"))}
    )
    other = label(4, 1.0, "another answer")
    keys = [entry.fold_key for entry in refitter().prepare([first, again, later, other])]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    rows = refitter(first, again, later, other).buffer.rows()
    assert len({int(fold) for fold in rows.folds_N(20)[:3]}) == 1
