"""A part that goes on with an older disk forgets again whom it had forgotten, and a letter that is written late is of the time of its record."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from learner.ring.learner_inputs import LogFeed
from learner.settings import LearnerSettings
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.clock import FixedClock
from streams.core.errors import InvalidEvent
from streams.core.events import Episode, Erasure, Message
from streams.core.part_context import PartContext
from streams.core.topics import DEAD_LETTERS, EPISODES, ERASED, ERASURES, FEEDBACK
from streams.erasure.forgotten_people import Forgotten, record_without
from streams.join.join_settings import JoinSettings
from streams.kafka import Record
from streams.kafka.dead_letters import letter_of
from streams.lake.lake_session import LakeSession
from streams.lake.lake_settings import LakeSettings
from streams.lake.parquet_lake import Lake
from tests.support.simulated_clients import at, install, producer
from tests.support.simulated_log import SimulatedLog

T0 = datetime(2026, 1, 1, tzinfo=UTC)
T0_MS = int(T0.timestamp() * 1000)


class RestoredPart:
    """A part's disk, its clock, and a log on which ann has asked something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.clock = FixedClock(T0)
        self.log, self.disk, self._copy = install(monkeypatch, SimulatedLog(clock=self.clock)), folder / "disk", folder / "copy"
        self.disk.mkdir()
        self.context = PartContext(at("test"), ArtifactStore(str(folder / "artifacts")), "default", folder, self.disk, clock=self.clock)
        asked = (Message(role="user", content="words of ann"),)
        producer().publish(EPISODES, Episode(episode_id="ep", user_id="ann", messages=asked, started_at=T0, ended_at=T0))

    def back_up(self) -> None:
        shutil.copytree(self.disk, self._copy)

    def restore(self) -> None:
        shutil.rmtree(self.disk)
        shutil.copytree(self._copy, self.disk)

    def forget_ann(self) -> None:
        self.clock.advance(minutes=1)
        producer().publish(ERASURES, Erasure.of("ann", "operator", self.clock.now()))
        self.clock.advance(minutes=1)

    def reports(self) -> list[dict[str, int]]:
        return [event.removed for event in self.log.events(ERASED)]

    def run_lake(self) -> list[bytes | None]:
        """What the lake holds of the episodes after a session of it."""
        uri = str(self.disk / "lake")
        session = LakeSession(LakeSettings(uri=uri), self.context, Lake(uri), JoinSettings())
        for _ in range(3):
            session.turn()
            self.clock.advance(minutes=2)
        session.finish()
        session.close()
        return [record.value for record in Lake(uri).records(EPISODES)]

    def run_feed(self) -> int:
        """How many prompts the learner's disk holds after a session of its feed."""
        feed = LogFeed(LearnerSettings(), self.context, producer(), "f" * 64)
        feed.read()
        feed.save()
        feed.close()
        assert ("words of ann" in (self.disk / "prompts.json").read_text()) == bool(len(feed.prompts))
        return len(feed.prompts)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RestoredPart:
    return RestoredPart(monkeypatch, tmp_path)


def test_a_lake_from_before_an_erasure_is_erased_again_and_says_so(part: RestoredPart) -> None:
    assert part.run_lake() != [None]
    part.back_up()
    part.forget_ann()
    assert part.run_lake() == [None]
    part.restore()
    assert part.run_lake() == [None]
    assert [told["episodes"] for told in part.reports()] == [1, 1]
    assert part.run_lake() == [None]
    assert len(part.reports()) == 2


def test_a_lake_that_begins_empty_takes_back_no_report(part: RestoredPart) -> None:
    part.run_lake()
    part.forget_ann()
    part.run_lake()
    shutil.rmtree(part.disk / "lake")
    assert part.run_lake() == [None]
    assert [told["episodes"] for told in part.reports()] == [1]


def test_prompts_from_before_an_erasure_are_erased_again_and_reported_once(part: RestoredPart) -> None:
    assert part.run_feed() == 1
    part.back_up()
    part.forget_ann()
    assert part.run_feed() == 0
    part.restore()
    assert part.run_feed() == 0
    assert part.reports() == [{"prompts": 1}]


def test_who_comes_back_after_an_erasure_keeps_their_prompts_through_restarts(part: RestoredPart) -> None:
    part.forget_ann()
    asked = (Message(role="user", content="words of ann, who came back"),)
    now = part.clock.now()
    producer().publish(EPISODES, Episode(episode_id="ep-2", user_id="ann", messages=asked, started_at=now, ended_at=now))
    assert [part.run_feed() for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(("arrived_minutes", "cleared"), [(-5, True), (5, False)])
def test_a_letter_that_is_written_after_an_erasure_is_of_the_time_of_its_record(arrived_minutes: int, cleared: bool) -> None:
    forgotten, minute_ms = Forgotten(), 60_000
    forgotten.add(Erasure.of("ann", "operator", T0), T0_MS)
    broken = Record(FEEDBACK.name, 0, 7, T0_MS + arrived_minutes * minute_ms, b"ep", b'{"feedback_id": 3, "user_id": "ann"}')
    written = T0 + timedelta(minutes=10)
    letter = letter_of(broken, InvalidEvent("invalid", "Feedback: feedback_id"), "join", written)
    assert letter.source_at == T0 + timedelta(minutes=arrived_minutes)
    record = Record(DEAD_LETTERS.name, 0, 0, T0_MS + 10 * minute_ms, b"k", letter.encode())
    kept = record_without(record, forgotten, JoinSettings())
    assert (DEAD_LETTERS.decode(kept.value).record_base64 == "") is cleared
