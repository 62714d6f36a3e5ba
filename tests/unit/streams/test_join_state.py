"""The join's state on disk: what is committed is there with its offsets, what is not never was."""

import random
import sqlite3
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec import structs

from streams.core.errors import Unavailable
from streams.core.events import Episode, Feedback, FeedbackKind, Label, Message, Outcome
from streams.join.episode_state import ArrivedFeedback, EpisodeState
from streams.join.feedback_join import FeedbackJoin, StatesInMemory
from streams.join.join_settings import JoinSettings
from streams.join.sqlite_state import PartitionState, Reached

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = JoinSettings(window_days=1)


def standing(name: str = "x", hours: float = 0) -> EpisodeState:
    given = Feedback(feedback_id=name, episode_id="e", kind=FeedbackKind.COMMENT, text="wörds \n", at=T0)
    return EpisodeState(feedback=(ArrivedFeedback(feedback=given, at=T0, offset=7),), expires_at=T0 + timedelta(hours=hours))


def test_what_is_committed_is_there_after_a_restart_and_what_is_not_never_was(tmp_path: Path) -> None:
    store = PartitionState(tmp_path / "s", cached=10)
    store["a"] = standing("a")
    store["gone"] = standing("gone")
    store.commit({"t": Reached(5, 50)})
    store["b"] = standing("b")
    del store["gone"]
    assert store.get("b") is not None
    assert store.get("gone") is None
    store.close()
    again = PartitionState(tmp_path / "s", cached=10)
    assert again.get("a") == standing("a")
    assert again.get("b") is None
    assert again.get("gone") is not None
    assert again.reached == {"t": Reached(5, 50)}


@pytest.mark.parametrize("cached", [0, 1, 100])
def test_the_cache_changes_nothing_but_memory(tmp_path: Path, cached: int) -> None:
    store, chance, plain = PartitionState(tmp_path / "s", cached), random.Random(0), StatesInMemory()
    for number in range(300):
        name = f"e{chance.randrange(20)}"
        if chance.random() < 0.2 and plain.get(name):
            del store[name], plain[name]
        else:
            store[name] = plain[name] = standing(str(number), chance.randrange(9))
        if chance.random() < 0.3:
            store.commit({"t": Reached(number, 0)})
            assert len(store._clean) <= cached
        other = f"e{chance.randrange(20)}"
        assert store.get(other) == plain.get(other)
        before = T0 + timedelta(hours=chance.randrange(10))
        assert sorted(store.due(before)) == sorted(plain.due(before)), "a change that is not committed yet moves what is due"
    store.commit({"t": Reached(1000, 0)})
    moment = T0 + timedelta(hours=4)
    assert sorted(store.due(moment)) == sorted(plain.due(moment))
    assert store.waiting() == len(plain)


def test_two_processes_cannot_both_move_a_partition_on(tmp_path: Path) -> None:
    one, other = PartitionState(tmp_path / "s", 10), PartitionState(tmp_path / "s", 10)
    one["a"] = standing("one")
    one.commit({"t": Reached(5)})
    other["a"] = standing("other")
    with pytest.raises(Unavailable, match="another process"):
        other.commit({"t": Reached(3)})
    assert PartitionState(tmp_path / "s", 10).get("a") == standing("one")
    one.commit({"t": Reached(6)})


def test_a_damaged_file_is_folded_again_from_nothing(tmp_path: Path) -> None:
    store = PartitionState(tmp_path / "s", 10)
    store["a"] = standing()
    store.commit({"t": Reached(5)})
    store.close()
    (tmp_path / "s").write_bytes(b"not a database, and long enough to look like one" * 100)
    again = PartitionState(tmp_path / "s", 10)
    assert again.get("a") is None
    assert again.reached == {}


OLD = """{"known":{"policy":"p","tenant":"t","user_id":"ann","conversation_id":null,"adapter":null,"assignment":null,"outcome":"completed",
"messages":[{"role":"user","content":"q","tool_calls":null,"tool_call_id":null,"name":"ann"}],"answer":"a","ended_at":"2026-01-01T00:00:00Z"},
"feedback":[{"feedback":{"schema_version":1,"feedback_id":"f","episode_id":"e","user_id":"bob","kind":"thumb","thumb":"up","rating":null,"text":null,
"over":null,"signal":null,"retracts":null,"at":"2026-01-01T00:00:00Z"},"at":"2026-01-01T00:00:00Z","offset":7}],
"superseded":["s"],"expires_at":"2026-01-02T00:00:00Z","erasures":1,"closed":null}"""


def test_a_state_of_an_older_version_is_read_and_its_episode_outlives_the_next_thumb(tmp_path: Path) -> None:
    store = PartitionState(tmp_path / "s", cached=0)
    store._database.execute("INSERT INTO standings VALUES ('e', ?, 0, 0)", (OLD,))
    found = store.get("e")
    assert found is not None
    assert found.known is not None
    assert found.known.messages == (Message.model_validate({"role": "user", "content": "q", "name": "ann"}),)
    assert (found.known.outcome, found.known.ended_at, found.superseded, found.erasures) == (Outcome.COMPLETED, T0, ("s",), 1)
    assert found.feedback[0].feedback == Feedback(feedback_id="f", episode_id="e", user_id="bob", kind=FeedbackKind.THUMB, thumb="up", at=T0)
    for _ in range(2):  # with the episode in its state, and apart from it
        store["e"] = structs.replace(found, erasures=found.erasures + 1)
        store.commit({})
        found = store.get("e")
        assert found is not None
        assert found.known is not None
        assert [store.find_where(lambda raw, who=who: f'"{who}"'.encode() in raw) for who in ("ann", "bob", "cy")] == [["e"], ["e"], []]  # type: ignore[misc]
    del store["e"]
    store.commit({})
    assert store.find_where(lambda _: True) == []
    assert sqlite3.connect(tmp_path / "s").execute("SELECT count(*) FROM episodes").fetchone() == (0,)


def test_a_full_disk_is_something_to_wait_for(tmp_path: Path) -> None:
    store = PartitionState(tmp_path / "s", 10)
    store._database.execute("PRAGMA max_page_count = 12")
    for number in range(2000):
        store[f"e{number}"] = standing(str(number))
    with pytest.raises(Unavailable, match="full"):
        store.commit({"t": Reached(2000)})
    store._database.execute("PRAGMA max_page_count = 100000")
    store.commit({"t": Reached(2000)})
    assert PartitionState(tmp_path / "s", 10).get("e1999") is not None


def test_a_file_of_another_log_is_emptied(tmp_path: Path) -> None:
    store = PartitionState(tmp_path / "s", 10)
    store["a"] = standing()
    store.commit({"t": Reached(5)})
    store.clear()
    assert store.get("a") is None
    assert PartitionState(tmp_path / "s", 10).reached == {}
    assert sqlite3.connect(tmp_path / "s").execute("SELECT count(*) FROM standings").fetchone() == (0,)


class DurableJoin(RuleBasedStateMachine):
    """A log of one partition, a join that folds it, commits and is killed at any moment; a second one that is never disturbed."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.log: list[Episode | Feedback] = []
        self.published: dict[str, Label] = {}
        self.aside: set[str] = set()
        self._open()

    def _open(self) -> None:
        self.store = PartitionState(Path(self.folder.name) / "s", cached=2)
        self.unsent: list[Any] = []
        self.join = FeedbackJoin(self.store, SETTINGS, lambda arrived, _: self.unsent.append(arrived.feedback.feedback_id))
        self.next = self.store.reached.get("log", Reached()).next

    @rule(name=st.sampled_from("abc"), outcome=st.sampled_from(list(Outcome)))
    def an_episode_comes(self, name: str, outcome: Outcome) -> None:
        message = Message(role="user", content="x")
        self.log.append(Episode(episode_id=name, messages=(message,), outcome=outcome, started_at=T0, ended_at=T0))

    @rule(name=st.sampled_from("abcd"), hours=st.integers(0, 30), up=st.booleans(), who=st.sampled_from(["ann", "bob"]))
    def a_thumb_comes(self, name: str, hours: int, up: bool, who: str) -> None:
        at = T0 + timedelta(hours=hours)
        thumb = "up" if up else "down"
        self.log.append(
            Feedback.model_validate(
                {"feedback_id": f"f{len(self.log)}", "episode_id": name, "user_id": who, "kind": "thumb", "thumb": thumb, "at": at}
            )
        )

    @rule(back=st.integers(1, 9))
    def something_comes_again(self, back: int) -> None:
        if self.log:
            self.log.append(self.log[-min(back, len(self.log))])

    @rule(back=st.integers(1, 9))
    def something_is_taken_back(self, back: int) -> None:
        earlier = self.log[-min(back, len(self.log))] if self.log else None
        if isinstance(earlier, Feedback):
            more = {"feedback_id": f"r{len(self.log)}", "kind": "retraction", "thumb": None, "retracts": earlier.feedback_id}
            self.log.append(Feedback.model_validate({**earlier.model_dump(), **more}))

    @rule(count=st.integers(1, 6), survives=st.booleans())
    def a_batch_is_folded(self, count: int, survives: bool) -> None:
        """Publish, then commit; when it does not survive, it is killed between the two."""
        for event in self.log[self.next : self.next + count]:
            label = self.join.on_episode(event, T0) if isinstance(event, Episode) else self.join.on_feedback(event, T0, self.next)
            if label is not None:
                self.unsent.append(label)
            self.next += 1
        for each in self.unsent:
            if isinstance(each, Label):
                self.published[each.episode_id] = each
            else:
                self.aside.add(each)
        self.unsent.clear()
        if survives:
            self.store.commit({"log": Reached(self.next)})
        else:
            self.it_is_killed()

    @rule()
    def it_is_killed(self) -> None:
        self.store.close()
        self._open()

    @invariant()
    def once_all_is_folded_it_is_as_if_nothing_had_happened(self) -> None:
        if self.next < len(self.log):
            return
        aside: set[str] = set()
        join, expected = FeedbackJoin(StatesInMemory(), SETTINGS, lambda arrived, _: aside.add(arrived.feedback.feedback_id)), {}
        for event in self.log:
            label = join.on_episode(event, T0) if isinstance(event, Episode) else join.on_feedback(event, T0)
            if label is not None:
                expected[label.episode_id] = label
        assert self.published == expected
        assert self.aside == aside

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


DurableJoin.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestDurableJoin = DurableJoin.TestCase
