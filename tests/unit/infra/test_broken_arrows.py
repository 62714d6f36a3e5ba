"""A ring that is broken is told from one that is slow, and the arrow is named."""

from dataclasses import replace

import pytest

from infra.demo.broken_arrows import PATIENCE_S, STEP_PATIENCE_S, ArrowWatch, RingCounts, lost

WHOLE = RingCounts(questions=100, answers=99, episodes=99, thumbs=80, feedback=80, labels=80, enough_labels=80, reward_models=5, adapters=3,
                   attestations=3, attested=3, adapter_answers=20)  # fmt: skip
PLACES = [
    ("answers", "people → actor", "actor"),
    ("episodes", "actor → episodes", "actor"),
    ("feedback", "people → feedback", "actor"),
    ("labels", "episodes, feedback → labels", "streams"),
    ("reward_models", "labels → reward-models", "reward"),
    ("adapters", "reward-models → adapters", "learner"),
    ("attestations", "adapters → attestations", "actor"),
    ("adapter_answers", "attestations → answers", "actor"),
]


def up_to(place: str) -> RingCounts:
    """A ring in which nothing comes out at this place, nor behind it."""
    names = list(vars(WHOLE))
    return replace(WHOLE, **dict.fromkeys(names[names.index(place) :], 0))


@pytest.mark.parametrize(("place", "arrow", "part"), PLACES)
def test_what_went_in_long_ago_and_never_came_out_names_the_arrow(place: str, arrow: str, part: str) -> None:
    watch, counts = ArrowWatch(), up_to(place)
    if place == "feedback":
        counts = replace(counts, thumbs=80)
    assert watch.broken(counts, 1000.0) is None
    patience_s = STEP_PATIENCE_S if part == "learner" else PATIENCE_S
    assert watch.broken(counts, 1000.0 + patience_s) is None
    found = watch.broken(counts, 1001.0 + patience_s)
    assert found is not None
    assert (found.name, found.part) == (arrow, part)
    assert f"the arrow {arrow} is broken: " in str(found)
    assert f"the first {patience_s + 1:.0f} s ago, and no " in str(found)


def test_a_ring_that_carries_is_whole_however_long_it_turns_and_one_that_has_not_begun_too() -> None:
    watch = ArrowWatch()
    for now_s in (0.0, 10_000.0):
        assert watch.broken(RingCounts(), now_s) is None
    for now_s in (10_000.0, 20_000.0):
        assert watch.broken(WHOLE, now_s) is None


def test_too_few_labels_for_a_reward_model_are_no_broken_arrow() -> None:
    watch, counts = ArrowWatch(), replace(up_to("enough_labels"), labels=10)
    assert watch.broken(counts, 0.0) is None
    assert watch.broken(counts, 1e6) is None


def test_a_learner_on_a_slow_machine_has_as_many_steps_as_on_a_fast_one() -> None:
    watch, counts = ArrowWatch(predicted_step_s=300.0), up_to("adapters")
    assert watch.broken(counts, 0.0) is None
    assert watch.broken(counts, 2400.0) is None
    assert watch.broken(counts, 2401.0) is not None


def test_a_request_in_a_hundred_may_fail_and_one_in_ten_may_not() -> None:
    assert lost("people → actor", 1, 100) is None
    assert lost("people → actor", 0, 0) is None
    assert lost("people → actor", 10, 100, "Timeout") == "the arrow people → actor is broken: 10 of 100 did not arrive, such as Timeout"
