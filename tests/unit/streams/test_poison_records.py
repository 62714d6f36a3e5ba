"""What a record makes fail is the record's fault; what a dependency or the machine does is not. A record that kills twice is set aside unread."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from streams.core.errors import InvalidEvent, Unavailable
from streams.core.events import Feedback
from streams.core.poison_records import RecordInHand, blamed_on_record
from streams.core.topics import DEAD_LETTERS, FEEDBACK, LABELS
from streams.join import feedback_join
from streams.join.join_settings import JoinSettings
from tests.simulation.join_world import JoinWorld
from tests.support.simulated_log import Killed
from tests.unit.streams.test_feedback_join import episode, feedback


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> JoinWorld:
    return JoinWorld(monkeypatch, tmp_path, 1, JoinSettings(batch_records=3, expire_every_s=60))


@pytest.mark.parametrize("error", [ValueError("ann said"), KeyError("x"), RecursionError(), OverflowError(), AssertionError()])
def test_a_step_that_fails_blames_its_record_without_its_words(error: Exception) -> None:
    with pytest.raises(InvalidEvent, match=type(error).__name__ + r" at test_poison_records.py:\d+") as told, blamed_on_record("joining"):
        raise error
    assert told.value.reason == "unusable"
    assert "ann" not in str(told.value)


@pytest.mark.parametrize("error", [Unavailable("away"), OSError(28, "full"), MemoryError(), sqlite3.OperationalError("locked"), Killed()])
def test_what_the_machine_does_is_not_the_records_fault(error: BaseException) -> None:
    with pytest.raises(type(error)), blamed_on_record("joining"):
        raise error


def work(path: Path, offset: int, dies: type[BaseException] | None = None) -> None:
    """A process that starts, works on one record, and may die of it: what lies in the page stays."""
    hand = RecordInHand(path)
    try:
        with hand.working_on("t", 1, offset, "a part"):
            if dies is not None:
                raise dies
    finally:
        hand.close()


def test_a_record_is_set_aside_after_two_deaths_and_those_beside_it_are_not(tmp_path: Path) -> None:
    path = tmp_path / "in-hand"
    for _ in range(2):
        work(path, 6)
        for offset, dies in ((7, Killed), (9, MemoryError)):  # two that kill in turn: neither makes the other be forgotten
            with pytest.raises(dies):
                work(path, offset, dies)
    for offset in (7, 9):
        with pytest.raises(InvalidEvent, match="a part died 2 times") as told:
            work(path, offset)
        assert told.value.reason == "deadly"
    work(path, 6)
    work(path, 8)


def test_a_failure_that_the_process_survives_is_no_death(tmp_path: Path) -> None:
    for _ in range(5):
        with pytest.raises(Unavailable):
            work(tmp_path / "in-hand", 7, Unavailable)
    work(tmp_path / "in-hand", 7)


def poisoned(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """A label that is made of a comment that says poison fails."""
    label_of = feedback_join.label_of

    def failing(episode_id: str, known: Any, given: list[Feedback], settings: Any) -> Any:
        if any(each.text == "poison" for each in given):
            raise error
        return label_of(episode_id, known, given, settings)

    monkeypatch.setattr(feedback_join, "label_of", failing)


@pytest.mark.parametrize(
    ("error", "reason", "episode_first"), [(ValueError, "unusable", True), (ValueError, "unusable", False), (Killed, "deadly", True)]
)
def test_the_join_goes_on_past_a_record_that_makes_it_fail_or_die(
    world: JoinWorld, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], reason: str, episode_first: bool
) -> None:
    poisoned(monkeypatch, error)
    begin = world.clock.now()
    answered = episode().model_copy(update={"started_at": begin, "ended_at": begin})
    if episode_first:
        world.publish(answered)
        world.settle()
    for given in (feedback("before", thumb="up"), feedback("poison", kind="comment", text="poison"), feedback("after", thumb="down")):
        world.publish(given.model_copy(update={"at": begin}))
    if not episode_first:
        world.settle()
        world.publish(answered)
    for _ in range(40):
        world.start("north")
        world.turn("north")
        world.clock.advance(seconds=20)  # the group hears of a death
    world.settle()
    (letter,) = world.log.events(DEAD_LETTERS)
    assert (letter.reason, letter.source_topic, letter.source_offset) == (reason, FEEDBACK.name, 1)
    assert set(world.labels()["e"].feedback_ids) == {"before", "after"}, "the state holds nothing of what failed"
    ledger = world.ledger()
    assert ledger.balanced, str(ledger)


def test_feedback_that_makes_a_label_too_large_is_set_aside_by_its_own_place_and_the_rest_counts(world: JoinWorld) -> None:
    world.log.topic_bytes[LABELS.name] = 3000
    begin = world.clock.now()
    world.publish(episode().model_copy(update={"started_at": begin, "ended_at": begin}))
    world.settle()
    long = feedback("long", kind="correction", text="x" * 4000)
    for given in (feedback("before", thumb="up"), long, feedback("after", thumb="down", user_id="bob")):
        world.publish(given.model_copy(update={"at": begin}))
        world.settle()
    (letter,) = world.log.events(DEAD_LETTERS)
    assert (letter.reason, letter.source_topic, letter.source_offset, letter.feedback_id) == ("too_large", FEEDBACK.name, 1, "long")
    assert set(world.labels()["e"].feedback_ids) == {"before", "after"}
    assert world.ledger().balanced, str(world.ledger())
