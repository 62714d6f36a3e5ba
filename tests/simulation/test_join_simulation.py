"""The join over weeks of the log's time, with kills, pauses and lost disks anywhere: every feedback is accounted for, and none is said to be missing.

Hypothesis draws what people do, what happens to the machines and how time passes, and shrinks what breaks a promise to a short story.
FUZZ_PROFILE=long draws twenty times as many.
"""

import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from streams.core.events import Episode, Feedback, FeedbackKind, Message
from streams.core.topics import EPISODES, FEEDBACK
from streams.join.join_settings import JoinSettings
from streams.join.log_retention import remembered
from tests.simulation.join_world import MACHINES, JoinWorld

PEOPLE = ("ann", "bob", "cy")
machines = st.sampled_from(MACHINES)


class JoinStory(RuleBasedStateMachine):
    """What can happen. ``window_days`` and what the topics keep differ from story to story."""

    window_days = (2.0,)
    retention_days: ClassVar[dict[str, float]] = {}

    @initialize(seed=st.integers(0, 1 << 30), cooperative=st.booleans(), data=st.data())
    def begin(self, seed: int, cooperative: bool, data: st.DataObject) -> None:
        self.patch = pytest.MonkeyPatch()
        self.folder = tempfile.TemporaryDirectory()
        window = data.draw(st.sampled_from(self.window_days))
        self.settings = JoinSettings(window_days=window, batch_records=3, expire_every_s=60)
        self.world = JoinWorld(self.patch, Path(self.folder.name), seed, self.settings, self.retention_days, cooperative)
        self.remembered = remembered(self.settings, {topic.name: self._kept(topic.name) for topic in (EPISODES, FEEDBACK)})
        self.began = self.world.clock.now()
        self.said: list[Episode | Feedback] = []
        self.knows: dict[str, frozenset[str]] = {}
        self.world.start(MACHINES[0])

    @rule(number=st.integers(0, 3), person=st.sampled_from(PEOPLE), hours_late=st.sampled_from((0, 0, 1, 30)))
    def an_agent_answers(self, number: int, person: str, hours_late: int) -> None:
        ended = self.world.clock.now() - timedelta(hours=hours_late)
        question = Message(role="user", content=f"question {number}")
        self._say(Episode(episode_id=self._name(number), user_id=person, messages=(question,), answer="yes", started_at=ended, ended_at=ended))

    @rule(number=st.integers(0, 3), person=st.sampled_from(PEOPLE), up=st.booleans(), hours=st.sampled_from((0, 0, 0, -1, -30, 20, 400)))
    def somebody_judges(self, number: int, person: str, up: bool, hours: int) -> None:
        at, name = self.world.clock.now() + timedelta(hours=hours), f"fb-{len(self.said)}"
        self._say(
            Feedback(feedback_id=name, episode_id=self._name(number), user_id=person, kind=FeedbackKind.THUMB, thumb="up" if up else "down", at=at)
        )

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def something_is_sent_again(self, data: st.DataObject) -> None:
        """Within the log's memory: an id that comes again later is a new episode (docs/concepts/no-loss.md)."""
        if lately := [event for event in self.said if self.world.clock.now() - self._first_arrival(event.episode_id) < self.remembered]:
            self._say(data.draw(st.sampled_from(lately)))

    @rule(number=st.integers(0, 3))
    def something_is_no_event(self, number: int) -> None:
        self.world.people.send_raw(FEEDBACK.name, f"ep-{number}".encode(), b'{"feedback_id": 3')()

    @rule(hours=st.sampled_from((0.1, 1, 20, 30, 60)))
    def time_passes(self, hours: float) -> None:
        self.world.pass_time(hours)

    @rule(hours=st.sampled_from((1, 30, 60)))
    def quiet_hours_pass(self, hours: float) -> None:
        self.all_is_read()
        self.world.pass_time(hours)
        self.all_is_read()

    @rule(name=machines, turns=st.integers(1, 6))
    def a_machine_works(self, name: str, turns: int) -> None:
        for _ in range(turns):
            self.world.turn(name)

    @precondition(lambda self: any(machine.session is None for machine in self.world.machines.values()))
    @rule(data=st.data(), disk=st.sampled_from(("kept", "empty", "old")))
    def a_machine_starts(self, data: st.DataObject, disk: str) -> None:
        name = data.draw(st.sampled_from([name for name, machine in self.world.machines.items() if machine.session is None]))
        self.world.start(name, disk)
        self.world.turn(name)

    @rule(name=machines)
    def a_machine_stops(self, name: str) -> None:
        self.world.stop(name)

    @rule(name=machines, calls=st.integers(0, 30))
    def a_machine_will_be_killed(self, name: str, calls: int) -> None:
        self.world.kill_after(name, calls)

    @rule(name=machines, calls=st.integers(0, 30), others_turns=st.integers(1, 12))
    def a_machine_will_sleep(self, name: str, calls: int, others_turns: int) -> None:
        self.world.sleep_after(name, calls, others_turns)

    @rule()
    def all_is_read(self) -> None:
        self.world.settle()
        self._promises_hold()

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.world.settle()
                self._promises_hold()
                for _ in range(3):
                    self.world.pass_time(self.settings.window_days * 24 + 1)
                    self.world.settle()
                    self._promises_hold()
                self._nothing_waits()
                self._what_came_in_time_counts()
        finally:
            for machine in self.world.machines.values() if hasattr(self, "world") else ():
                if machine.session is not None:
                    machine.session.close()
            self.folder.cleanup()
            self.patch.undo()

    def _name(self, number: int) -> str:
        """An episode id, in use for half of the log's memory."""
        return f"ep-{number}-{(self.world.clock.now() - self.began) // (self.remembered / 2)}"

    def _kept(self, topic: str) -> timedelta | None:
        return timedelta(days=self.retention_days[topic]) if topic in self.retention_days else None

    def _first_arrival(self, episode_id: str) -> datetime:
        return min(self.world.arrived[place] for place, event in self.world.sent.items() if event.episode_id == episode_id)

    def _say(self, event: Episode | Feedback) -> None:
        self.said.append(event)
        self.world.publish(event)

    def _promises_hold(self) -> None:
        ledger = self.world.ledger()
        assert ledger.balanced, str(ledger)
        knows = {name: frozenset(label.feedback_ids) for name, label in self.world.labels().items()}
        for name, before in self.knows.items():
            assert before <= knows.get(name, frozenset()), f"the label of {name} went back from {sorted(before)} to {knows.get(name)}"
        self.knows = knows

    def _nothing_waits(self) -> None:
        """Long after the last record each feedback is in a label, was set aside, is there twice, or was deleted before a join could read it."""
        labels, seen = self.world.labels(), set[str]()
        for place, feedback in self._feedback().items():
            label = labels.get(feedback.episode_id)
            told = label is not None and feedback.feedback_id in label.feedback_ids
            assert told or place in self.world.letters or feedback.feedback_id in seen or place in self.world.lost, feedback
            seen.add(feedback.feedback_id)

    def _what_came_in_time_counts(self) -> None:
        """Whoever joined, on whatever disk: what arrived and was given within the window of its episode's first arrival is in the label."""
        labels, window = self.world.labels(), self.settings.window
        first: dict[str, tuple[tuple[str, int, int], Episode]] = {}
        for place, event in self.world.sent.items():
            if isinstance(event, Episode) and place not in self.world.lost:
                first.setdefault(event.episode_id, (place, event))
        for place, feedback in self._feedback().items():
            if place in self.world.lost | self.world.orphaned or feedback.episode_id not in first:
                continue
            where, episode = first[feedback.episode_id]
            apart = abs(self.world.arrived[place] - self.world.arrived[where])
            given_late = min(feedback.at, self.world.arrived[place]) - episode.ended_at
            if max(apart, given_late) < window - timedelta(hours=1):
                named = labels[feedback.episode_id].feedback_ids if feedback.episode_id in labels else ()
                assert feedback.feedback_id in named, (feedback, apart)

    def _feedback(self) -> dict[tuple[str, int, int], Feedback]:
        return {
            (FEEDBACK.name, partition, offset): event
            for (topic, partition, offset), event in self.world.sent.items()
            if topic == FEEDBACK.name and isinstance(event, Feedback)
        }


class ShortRetentionStory(JoinStory):
    """The log forgets sooner than feedback may come: labels must carry what the log no longer has, and what cannot be known is set aside."""

    window_days = (1.0, 3.0)
    retention_days: ClassVar[dict[str, float]] = {EPISODES.name: 2.0, FEEDBACK.name: 4.0}

    def _what_came_in_time_counts(self) -> None:
        """An episode that the log lost without a label is lost to whoever starts with an empty disk: the join warns of such a window."""


TestJoinStory = JoinStory.TestCase
TestShortRetentionStory = ShortRetentionStory.TestCase
