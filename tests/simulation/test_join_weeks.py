"""Stories over weeks of the log's time, told one by one: what the simulation's random stories seldom reach."""

from datetime import timedelta
from pathlib import Path

import pytest

from streams.core.events import Episode, Feedback, FeedbackKind, Message
from streams.core.topics import DEAD_LETTERS, EPISODES, FEEDBACK, LABELS
from streams.join.join_settings import JoinSettings
from streams.join.log_retention import remembered, window_outlives
from tests.simulation.join_world import JoinWorld


def world_of(monkeypatch: pytest.MonkeyPatch, folder: Path, window_days: float, **kept_days: float) -> JoinWorld:
    settings = JoinSettings(window_days=window_days, batch_records=3, expire_every_s=60)
    kept = {f"tidemill.{topic}.v1": days for topic, days in kept_days.items()}
    return JoinWorld(monkeypatch, folder, 1, settings, kept)


def answer(world: JoinWorld) -> Episode:
    now = world.clock.now()
    return Episode(episode_id="ep", user_id="ann", messages=(Message(role="user", content="q"),), answer="yes", started_at=now, ended_at=now)


def thumb(world: JoinWorld, name: str, person: str = "bob") -> Feedback:
    return Feedback(feedback_id=name, episode_id="ep", user_id=person, kind=FeedbackKind.THUMB, thumb="up", at=world.clock.now())


def test_late_feedback_is_set_aside_at_once_and_never_called_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = world_of(monkeypatch, tmp_path, window_days=2)
    world.publish(answer(world))
    world.settle()
    world.pass_time(60)
    world.settle()  # the episode's window has passed; the episode is on the log for days yet
    world.publish(thumb(world, "late"))
    world.settle()
    assert [letter.reason for letter in world.log.events(DEAD_LETTERS)] == ["expired"]
    ledger = world.ledger()
    assert ledger.balanced, str(ledger)
    assert ledger.rows[1].expired == 1


def test_an_episode_that_is_sent_again_after_its_window_makes_no_second_label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = world_of(monkeypatch, tmp_path, window_days=2)
    first = answer(world)
    for event in (first, thumb(world, "counted")):
        world.publish(event)
        world.settle()
    world.pass_time(60)
    world.settle()
    late = thumb(world, "late", "cy").model_copy(update={"at": first.ended_at})
    for event in (late, first):  # an outbox that was away delivers a thumb of that day, and the episode once more
        world.publish(event)
        world.settle()
    assert world.labels()["ep"].feedback_ids == ("counted",)
    assert world.ledger().balanced, str(world.ledger())


@pytest.mark.parametrize("disk", ["empty", "old"])
def test_who_takes_over_where_the_log_has_lost_the_episode_goes_on_from_its_label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disk: str) -> None:
    world = world_of(monkeypatch, tmp_path, window_days=10, episodes=2, feedback=2)
    world.start("south")
    world.stop("south")  # its disk is from before all that follows
    world.start("north")
    for event in (answer(world), thumb(world, "first")):
        world.publish(event)
        world.settle()
    world.stop("north")
    for _ in range(5):
        world.pass_time(24)
    assert world.log.records(EPISODES) == [], "retention has deleted the episode"
    world.start("south", "kept" if disk == "old" else "empty")
    world.publish(thumb(world, "second", "cy"))
    world.settle()
    assert set(world.labels()["ep"].feedback_ids) == {"first", "second"}
    assert world.labels()["ep"].answer == "yes"
    world.publish(thumb(world, "first"))
    world.settle()
    assert len(world.log.records(LABELS)) == 2, "what the label knew is known as told before"


def test_a_take_over_says_of_each_feedback_what_the_former_owner_had_not_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = world_of(monkeypatch, tmp_path, window_days=2)
    world.start("north")
    world.publish(answer(world))
    world.settle()
    world.pass_time(72)
    world.publish(thumb(world, "late"))
    world.kill_after("north", 8)
    for _ in range(10):
        world.turn("north")
    world.clock.advance(minutes=1)
    world.stop("north")
    world.start("west", "empty")
    world.settle()
    world.pass_time(100)
    world.settle()
    assert list(world.letters.values()) == ["expired"]
    assert world.ledger().balanced, str(world.ledger())


def test_a_window_beyond_what_a_topic_keeps_is_told_with_both_values() -> None:
    kept = {EPISODES.name: timedelta(days=7), FEEDBACK.name: None}
    assert window_outlives(JoinSettings(window_days=7), kept) is None
    told = window_outlives(JoinSettings(window_days=30), kept)
    assert told is not None
    assert "join.window_days = 30" in told
    assert "tidemill.episodes.v1 is kept: retention.ms is 7 days" in told
    assert remembered(JoinSettings(), kept) > timedelta(days=36_000), "for ever, where feedback is kept for ever"


@pytest.mark.parametrize("cooperative", [True, False])
def test_what_stays_with_a_member_through_a_rebalance_is_not_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cooperative: bool) -> None:
    """Where the group makes every member give up everything, nothing stays: another may have had it meanwhile."""
    world = JoinWorld(monkeypatch, tmp_path, 1, JoinSettings(batch_records=3, expire_every_s=60), {}, cooperative)
    world.start("north")
    world.publish(answer(world))
    world.settle()
    north = world.machines["north"].session
    assert north is not None
    opened = dict(north.parts)
    world.start("south")
    world.settle()
    stays = dict(north.parts)
    assert 0 < len(stays) < len(opened)
    assert {number for number, part in stays.items() if part is opened[number]} == (set(stays) if cooperative else set())
    world.publish(thumb(world, "meanwhile"))
    world.settle()
    world.stop("south")
    world.settle()
    assert len(north.parts) == len(opened)
    assert [number for number, part in stays.items() if north.parts[number] is not part] == ([] if cooperative else list(stays))
    assert world.labels()["ep"].feedback_ids == ("meanwhile",)
    assert world.ledger().balanced, str(world.ledger())
