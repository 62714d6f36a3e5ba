"""Channels, ratings, doubt, slices: how what is said on a label becomes what the reward model learns, and how well it is told."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.evaluation.label_slices import by_slice, language_of, length_of
from reward.fit.buffer_entry import BufferEntry
from reward.fit.head_fit import FitPart, FitRecipe, Rows, fit
from reward.fit.replay_buffer import ReplayBuffer, parts_of
from reward.settings import RewardSettings
from reward.trust.drift_alarm import rise_of_mean
from reward.trust.voter_trust import smoothed_trust, trust_of_voters
from reward.updater.refitter import Refitter
from streams.core.events import Feedback, FeedbackKind, Label, Message, Outcome
from streams.join.episode_state import KnownEpisode
from streams.join.feedback_join import label_of
from streams.join.join_settings import JoinSettings
from tests.unit.reward.test_refitter import SMALL, TEN, CountedLetters, checksum, label, refitter

torch.set_num_threads(1)
T0 = datetime(2026, 1, 1, tzinfo=UTC)
RECIPE = FitRecipe(
    features="f" * 64, blocks=((2, 1.0),), heads=3, folds=2, l2=1.0, l2_in_doubt=1.0, lower_bound_stds=0.5, calibration_half_life_labels=1e6
)


def joined(number: int, *said: dict[str, Any], answer: str = "you tea", settings: JoinSettings | None = None, adapter: str | None = None) -> Label:
    """The label that the join makes of this; each ``said`` may name ``user_id`` and ``hours``."""
    feedback = []
    for n, one in enumerate(said):
        carries = {k: v for k, v in one.items() if k not in ("user_id", "hours")}
        kind = {"thumb": "thumb", "rating": "rating", "signal": "signal", "over": "comparison", "text": "correction", "retracts": "retraction"}
        feedback.append(
            Feedback(
                feedback_id=f"f{number}-{n}",
                episode_id=f"ep-{number}",
                user_id=one.get("user_id", "ann"),
                kind=FeedbackKind(kind[next(iter(carries))]),
                at=T0 + timedelta(minutes=number, hours=one.get("hours", 0)),
                **carries,
            )
        )
    known = KnownEpisode(
        policy="default",
        tenant="default",
        adapter=adapter,
        outcome=Outcome.COMPLETED,
        messages=(Message(role="user", content="tea?"),),
        answer=answer,
        ended_at=T0,
    )
    return label_of(f"ep-{number}", known, feedback, settings or JoinSettings())


def only_entry(one: Label) -> BufferEntry:
    (entry,) = Refitter(SMALL, CountedLetters()).prepare([one])
    return entry


def test_a_thumb_and_a_signal_teach_side_by_side_by_their_weights() -> None:
    entry = only_entry(joined(1, {"thumb": "down"}, {"signal": "copied", "user_id": "bob"}))
    assert entry.verdict == pytest.approx(0.1 / 1.1)
    assert parts_of(entry) == (FitPart(pytest.approx(0.1 / 1.1), pytest.approx(1.1)),)
    assert entry.by_people


def test_a_rating_says_above_which_levels_an_answer_lies() -> None:
    entry = only_entry(joined(1, {"rating": 2}))
    assert parts_of(entry) == tuple(FitPart(float(k < 2), 0.25, level=k) for k in (1, 2, 3, 4))
    assert entry.verdict == 0.25


def test_tools_are_not_people() -> None:
    entry = only_entry(joined(1, {"signal": "test-passed", "user_id": "ci"}))
    assert entry.voters == ()
    assert not entry.by_people
    assert (entry.verdict, entry.weight) == (1.0, 0.5)


def test_a_silenced_channel_teaches_nothing() -> None:
    silent = JoinSettings(channels={"corrections": 0, "thumbs": 0})
    entry = only_entry(joined(1, {"text": "rather this"}, {"thumb": "up"}, settings=silent))
    assert (entry.verdict, entry.corrections, entry.features_D) == (None, (), None)


def test_outcomes_alone_make_a_first_version_and_teach_what_passes() -> None:
    answers = ["you you", "tea tea"]
    signals = ("test-passed", "test-failed")
    labels = [joined(i, {"signal": signals[i % 2], "user_id": "ci"}, answer=answers[i % 2] + " x" * (i // 2)) for i in range(12)]
    model = refitter(*labels).refit().model
    assert model is not None
    passes, fails = model.score(CountedLetters().features([((), answer) for answer in answers])).mean_N
    assert passes > fails + 0.1


def rated(levels: list[int], thresholds: bool = True) -> Rows:
    """Every answer is of the same kind; ``levels`` are ratings 1 to 5."""
    count = len(levels)
    features_ND = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    parts = [tuple(FitPart(float(r > k), 0.25, level=k if thresholds else 0) for k in range(1, 5)) for r in levels]
    return Rows(
        thumbs_ND=features_ND,
        verdicts_N=torch.tensor([(r - 1) / 4 for r in levels]),
        weights_N=torch.ones(count),
        trust_N=torch.ones(count),
        parts=parts,
        episodes=[f"ep-{i}" for i in range(count)],
        voters=[()] * count,
        newer_N=torch.arange(count),
        complete_N=torch.ones(count, dtype=torch.float64),
        better_PD=features_ND[:0],
        worse_PD=features_ND[:0],
        pair_weights_P=torch.ones(0),
        pair_episodes=[],
    )


def test_ratings_are_ordinal_so_that_thresholds_take_up_what_raters_are_like() -> None:
    """Generous raters: the first feature moves answers between 3, 4 and 5. With thresholds of their own the levels fit better."""
    generator = torch.Generator().manual_seed(3)
    x_N = torch.randn(300, generator=generator)
    levels = [5 if x > 0.4 else 4 if x > -0.4 else 3 for x in x_N.tolist()]
    with_own, without = rated(levels), rated(levels, thresholds=False)
    features_ND = torch.stack([x_N, torch.zeros(300)], 1)
    slopes = [float(fit(replace(rows, thumbs_ND=features_ND), RECIPE).heads_KD.mean(0)[0]) for rows in (with_own, without)]
    assert slopes[0] > 1.5 * slopes[1] > 0


def test_thresholds_stay_out_of_the_model() -> None:
    model = fit(rated([1, 2, 3, 4, 5] * 4), RECIPE)
    assert model.heads_KD.shape == (3, 2)
    assert model.folds_FD.shape == (2, 2)


def test_a_rating_without_thresholds_counts_as_the_mean_of_its_levels() -> None:
    """Four rows of a quarter have the same loss as one row at the mean, but for what does not depend on the weights."""
    levels = [1, 2, 4, 5] * 5
    rows = rated(levels, thresholds=False)
    one = replace(rows, parts=[(FitPart((r - 1) / 4, 1.0),) for r in levels])
    torch.testing.assert_close(fit(rows, RECIPE).heads_KD, fit(one, RECIPE).heads_KD, rtol=0, atol=1e-5)


def test_doubt_beyond_the_usual_smooths_towards_no_opinion() -> None:
    voters = [("ada",), ("mallory",), ("ada", "mallory"), ()]
    assert smoothed_trust(voters, {"ada": 0.95, "mallory": 0.2}).tolist() == pytest.approx([1.0, 0.5, 0.75, 1.0])


def test_a_smoothed_label_of_chance_says_nothing() -> None:
    rows = rated([1, 5] * 10, thresholds=False)
    silenced = fit(replace(rows, trust_N=torch.full((20,), 0.5)), RECIPE)
    assert float(silenced.heads_KD.abs().max()) < 0.05 < float(fit(rows, RECIPE).heads_KD.abs().max())


def test_trust_by_hand() -> None:
    """Prior log-odds log 9; p = .55 agreed with adds log(.55/.45) = .2007, p = .2 contradicted takes no more than .5."""
    found = trust_of_voters([("ada",), ("ada",)], torch.tensor([1.0, 1.0]), torch.tensor([0.55, 0.2]))
    assert found == {"ada": pytest.approx(1 / (1 + math.exp(-(math.log(9) + math.log(0.55 / 0.45) - 0.5))))}


def hint(number: int, verdict: float) -> BufferEntry:
    return BufferEntry(f"hint-{number}", verdict, 1, T0 + timedelta(days=number), torch.zeros(2), evidence=(("implicit", verdict, 0.2),))


def test_signals_never_push_out_what_people_said() -> None:
    people = [BufferEntry(f"ep-{i}", float(i % 2), 1, T0, torch.zeros(2)) for i in range(6)]
    buffer = ReplayBuffer(6, [*people, *(hint(i, float(i % 2)) for i in range(50))])
    assert len(buffer.with_verdict(people_only=True)) == 6
    assert len(buffer.with_verdict()) == 6 + 3


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Tea is a drink that you make with the leaves of a plant.", "en"),
        ("Tee ist ein Getränk, das man mit den Blättern einer Pflanze macht.", "de"),
        ("Le thé est une boisson que vous préparez avec les feuilles.", "fr"),
        ("El té es una bebida que se hace con las hojas.", "es"),
        ("茶是一种饮料", "zh"),
        ("お茶は飲み物です", "ja"),
        ("Чай это напиток", "ru"),
        ("x = [1, 2, 3]", "other"),
        ("", "other"),
    ],
)
def test_a_language_is_guessed_by_script_or_by_frequent_words(text: str, language: str) -> None:
    assert language_of(text) == language


def test_lengths_have_three_names() -> None:
    assert [length_of(words) for words in (49, 50, 199, 200)] == ["short", "middle", "middle", "long"]


def test_each_slice_is_told_for_itself_and_small_ones_not_at_all() -> None:
    def entry(n: int, adapter: str | None, right: bool) -> BufferEntry:
        verdict = float(n % 2)
        predicted = abs(verdict - (0.1 if right else 0.9))
        at = T0 + timedelta(minutes=n)
        return BufferEntry(
            f"ep-{n}", verdict, 1, at, torch.zeros(2), predicted=predicted, adapter=adapter, words=300 if adapter else 3, language="en"
        )

    entries = [entry(n, None, True) for n in range(12)] + [entry(20 + n, "p@1", False) for n in range(10)] + [entry(40, "p@2", True)]
    told = by_slice(entries)
    assert {name: (c.labels, c.accuracy) for name, c in told.items()} == {
        "adapter=base": (12, 1.0),
        "adapter=p@1": (10, 0.0),
        "channel=thumbs": (23, pytest.approx(13 / 23)),
        "language=en": (23, pytest.approx(13 / 23)),
        "length=long": (11, pytest.approx(1 / 11)),
        "length=short": (12, 1.0),
    }


def test_of_many_adapters_the_newest_five_are_told() -> None:
    entries = [
        BufferEntry(f"ep-{n}", 1.0, 1, T0 + timedelta(minutes=n), torch.zeros(2), predicted=0.5, adapter=f"p@{n // 10}", language="en")
        for n in range(70)
    ]
    assert [name for name in by_slice(entries) if name.startswith("adapter=")] == [f"adapter=p@{n}" for n in range(2, 7)]


def drifted(settings: RewardSettings) -> Refitter:
    """A model of long standing, and then the world turns round: 20 labels that say the opposite, each predicted by that model."""
    made = refitter(*[label(i, float(i % 3 > 0), at=i) for i in range(60)], settings=settings)
    made.published = made.refit().model
    for start in range(100, 160, 10):
        made.absorb(made.prepare([label(n, float(n % 3 > 0), at=n) for n in range(start, start + 10)]))
    made.absorb(made.prepare([label(n, float(n % 3 == 0), at=n) for n in range(200, 220)]))
    return made


def test_on_an_alarm_the_last_good_version_stays_and_says_why() -> None:
    lenient = SMALL.model_copy(update={"publish_tolerance_se": 10.0, "buffer_labels": 400, "drift_hold_labels": 50})
    refit = drifted(lenient).refit()
    assert (refit.result, refit.model) == ("drift", None)
    assert "the last version stays" in refit.why
    assert refit.evaluation.drift.since is not None
    assert f"since label {refit.evaluation.drift.since}" in refit.why
    assert refit.evaluation.alarms


def test_after_enough_labels_the_change_is_the_world_and_versions_go_on() -> None:
    short = SMALL.model_copy(update={"publish_tolerance_se": 10.0, "buffer_labels": 400, "drift_hold_labels": 10})
    refit = drifted(short).refit()
    assert refit.evaluation.drift.alarm
    assert refit.result == "published"


def test_without_an_alarm_nothing_is_withheld() -> None:
    assert not rise_of_mean([0.4] * 100).recent(100, 50)
    assert rise_of_mean([0.4] * 100).sentence == ""


SAYINGS = st.one_of(
    st.sampled_from([{"thumb": "up"}, {"thumb": "down"}, {"over": "ep-2"}, {"text": "you you"}, {"signal": "copied"}, {"signal": "test-failed"}]),
    st.builds(lambda r: {"rating": r}, st.integers(1, 5)),
    st.builds(lambda n: {"retracts": f"f1-{n}"}, st.integers(0, 5)),
)
HISTORIES = st.lists(
    st.builds(lambda said, user, hours: {**said, "user_id": user, "hours": hours}, SAYINGS, st.sampled_from(["ann", "bob"]), st.integers(0, 3)),
    min_size=1,
    max_size=6,
).map(lambda said: [{**one, "retracts": "f1-9"} if one.get("retracts") == f"f1-{n}" else one for n, one in enumerate(said)])  # not itself


@given(HISTORIES, st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_any_order_and_duplication_of_the_same_feedback_gives_the_same_next_version(history: list[dict[str, Any]], weigh: bool, random: Any) -> None:
    """From feedback to model: what the join published on the way, late or twice, leaves no trace."""
    shape = SMALL.model_copy(update={"weigh_reliability": weigh, "smooth_by_reliability": weigh})
    whole = joined(1, *history)
    partly = [joined(1, *history[:n]) for n in range(1, len(history))]
    on_the_way = [p for p in partly if p.newest_feedback_at <= whole.newest_feedback_at and len(p.feedback_ids) < len(whole.feedback_ids)]
    others = [one for one in TEN if one.episode_id != "ep-1"]
    seen = [*others, *on_the_way, whole, whole]
    random.shuffle(seen)
    assert checksum(refitter(*seen, settings=shape)) == checksum(refitter(*others, whole, settings=shape))


def test_a_critic_that_contradicts_people_is_hardly_heard_where_it_speaks_alone() -> None:
    def say(flipped: bool) -> float:
        """The part's weight of an answer that the critic alone judged."""
        both = [
            joined(
                n, {"thumb": "up" if n % 2 else "down"}, {"signal": "critic-good" if bool(n % 2) != flipped else "critic-bad", "user_id": "critic"}
            )
            for n in range(20)
        ]
        alone = joined(99, {"signal": "critic-good", "user_id": "critic"})
        one = Refitter(SMALL, CountedLetters())
        one.absorb(one.prepare([*both, alone]))
        rows = one.buffer.rows()
        (part,) = rows.parts[rows.episodes.index("ep-99")]
        return part.weight

    assert say(flipped=False) == pytest.approx(0.2)  # the channel's weight, in full
    assert say(flipped=True) == pytest.approx(0.002)
