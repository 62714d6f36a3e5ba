"""Lake and learner beside the join over weeks of the log's time, with people who ask to be forgotten, and kills and lost disks anywhere.

Each row of the log is in the lake once; the learner knows the answers of the labels that stand; and once a person's certificate is whole, nothing
that they said before is left in lake, learner and labels, whatever disk a part goes on with. FUZZ_PROFILE=long draws twenty times as many stories.
"""

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from streams.core.events import Episode, Feedback, FeedbackKind, Message
from streams.core.topics import EPISODES, FEEDBACK
from streams.join.join_settings import JoinSettings
from tests.simulation.join_world import MACHINES
from tests.simulation.ring_world import LAKE, LEARNER, RingWorld

PEOPLE = ("ann", "bob", "cy")
people = st.sampled_from(PEOPLE)
whens = st.sampled_from(("before", "within", "after"))
disks = st.sampled_from(("kept", "kept", "empty", "old"))


class RingStory(RuleBasedStateMachine):
    """What can happen."""

    retention_days: ClassVar[dict[str, float]] = {}

    @initialize(seed=st.integers(0, 1 << 30), cooperative=st.booleans(), compact_files=st.sampled_from((2, 3, 30)))
    def begin(self, seed: int, cooperative: bool, compact_files: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.folder = tempfile.TemporaryDirectory()
        settings = JoinSettings(window_days=2, batch_records=3, expire_every_s=60)
        self.world = RingWorld(self.patch, Path(self.folder.name), seed, settings, self.retention_days, cooperative, compact_files=compact_files)
        self.said, self.times_forgotten = 0, dict.fromkeys(PEOPLE, 0)
        self.world.start(MACHINES[0])
        self.world.start_store(LAKE)
        self.world.start_store(LEARNER)

    @rule(number=st.integers(0, 5), person=people)
    def an_agent_answers(self, number: int, person: str) -> None:
        now = self.world.clock.now()
        asked = (Message(role="user", content=self._words(person)),)
        name = f"ep-{number}-{self.said}" if number > 2 else f"ep-{number}"
        self.world.publish(Episode(episode_id=name, user_id=person, messages=asked, answer="yes", started_at=now, ended_at=now))

    @rule(number=st.integers(0, 2), person=people, says=st.sampled_from(("up", "down", None, None)), hours=st.sampled_from((0, 0, -1, -30)))
    def somebody_judges(self, number: int, person: str, says: str | None, hours: int) -> None:
        given = {"kind": FeedbackKind.THUMB, "thumb": says} if says else {"kind": FeedbackKind.COMMENT, "text": self._words(person)}
        when = self.world.clock.now() + timedelta(hours=hours)
        told = {"feedback_id": f"fb-{self.said}", "episode_id": f"ep-{number}", "user_id": person, "at": when, **given}
        self.said += 1
        self.world.publish(Feedback.model_validate(told))

    @rule(number=st.integers(0, 2), person=people)
    def something_is_no_event(self, number: int, person: str) -> None:
        broken = f'{{"feedback_id": 3, "user_id": "{person}", "text": "{self._words(person)}"}}'
        self.world.people.send_raw(FEEDBACK.name, f"ep-{number}".encode(), broken.encode())()

    @rule(person=people)
    def somebody_asks_to_be_forgotten(self, person: str) -> None:
        self.world.forget(person)
        self.times_forgotten[person] += 1

    @rule(person=people, number=st.integers(0, 2))
    def old_words_arrive_late(self, person: str, number: int) -> None:
        """An outbox was away: what a person said before they were forgotten."""
        earlier = [erasure.at for erasure, _ in self.world.asked if self.times_forgotten[person]]
        if earlier:
            last = max(each.at for each, _ in self.world.asked if each.person == self._erasure_of(person))
            words = self._words(person, self.times_forgotten[person] - 1)
            at = last - timedelta(minutes=1)
            self.world.publish(Feedback(feedback_id=f"late-{self.said}", episode_id=f"ep-{number}", user_id=person, kind=FeedbackKind.COMMENT,
                                        text=words, at=at))  # fmt: skip

    @rule(hours=st.sampled_from((0.1, 1, 20, 30, 60)))
    def time_passes(self, hours: float) -> None:
        self.world.pass_time(hours)

    @rule(name=st.sampled_from(MACHINES), turns=st.integers(1, 5), disk=disks)
    def a_join_works(self, name: str, turns: int, disk: str) -> None:
        self.world.start(name, disk)
        for _ in range(turns):
            self.world.turn(name)

    @rule(name=st.sampled_from((LAKE, LEARNER)), turns=st.integers(1, 6), pause_s=st.sampled_from((0, 15, 40)))
    def a_store_works(self, name: str, turns: int, pause_s: int) -> None:
        for _ in range(turns):
            self.world.clock.advance(seconds=pause_s)
            self.world.turn_store(name)

    @rule(name=st.sampled_from((*MACHINES, LAKE, LEARNER)), calls=st.integers(0, 30))
    def a_part_will_be_killed(self, name: str, calls: int) -> None:
        self.world.kill_after(name, calls)

    @rule(name=st.sampled_from((LAKE, LEARNER)), disk=disks, dies_at=st.none() | st.integers(1, 12), when=whens)
    def a_store_starts(self, name: str, disk: str, dies_at: int | None, when: str) -> None:
        self.world.start_store(name, disk, dies_at, when)

    @rule(name=st.sampled_from((LAKE, LEARNER)))
    def a_disk_is_backed_up(self, name: str) -> None:
        self.world.back_up(name)
        self.world.start_store(name)

    @rule(name=st.sampled_from((LAKE, LEARNER)))
    def a_back_up_is_restored(self, name: str) -> None:
        self.world.stop_store(name)
        self.world.start_store(name, "old")

    @rule(name=st.sampled_from((LAKE, LEARNER)), person=people)
    def somebody_is_forgotten_after_a_back_up(self, name: str, person: str) -> None:
        """Chance alone seldom puts these in their order."""
        self.world.settle()
        self.a_disk_is_backed_up(name)
        self.somebody_asks_to_be_forgotten(person)
        self.all_is_read()
        self.a_back_up_is_restored(name)

    @rule()
    def all_is_read(self) -> None:
        self.world.settle()
        self._promises_hold()

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.world.settle()
                self._promises_hold()
        finally:
            for machine in (*self.world.machines.values(), *self.world.stores.values()) if hasattr(self, "world") else ():
                if machine.session is not None:
                    machine.session.close()
            self.folder.cleanup()
            self.patch.undo()

    def _promises_hold(self) -> None:
        self.world.check_lake()
        self.world.check_feed()
        gone = [f"words-of-{person}-{time}-" for person, times in self.times_forgotten.items() for time in range(times)]
        found = [(where, words) for where, text in self.world.stored_texts() for words in gone if words in text]
        assert not found, found[:5]

    def _words(self, person: str, time: int | None = None) -> str:
        """What nobody else ever says, with the number of times that the person had been forgotten before."""
        self.said += 1
        return f"words-of-{person}-{self.times_forgotten[person] if time is None else time}-{self.said}"

    def _erasure_of(self, person: str) -> str:
        from streams.core.person_ids import person_of

        return person_of(person)


class ShortRetentionRingStory(RingStory):
    """The log forgets sooner than lake and learner may come back."""

    retention_days: ClassVar[dict[str, float]] = {EPISODES.name: 2.0, FEEDBACK.name: 4.0}


TestRingStory = RingStory.TestCase
TestShortRetentionRingStory = ShortRetentionRingStory.TestCase
