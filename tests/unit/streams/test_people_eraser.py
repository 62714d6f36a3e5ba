"""The join looks for erased people in all labels without standing still: a portion a turn, and what comes meanwhile is folded."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import Episode, Erasure, Feedback, FeedbackKind, Label, Message, Outcome, Vote
from streams.core.part_context import PartContext
from streams.core.topics import EPISODES, ERASED, ERASURES, FEEDBACK, LABELS
from streams.join import people_eraser
from streams.join.join_session import JoinSession
from streams.join.join_settings import JoinSettings
from tests.support.simulated_clients import at, install, producer
from tests.support.simulated_log import SimulatedLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OLD_LABELS = 300
ASKED = Message(role="user", content="hi")


def old_label(number: int) -> Label:
    """A label whose episode no join holds any more; ada gave every tenth."""
    vote = Vote(feedback_id=f"old-{number}", user_id="ada" if number % 10 == 0 else "bob", kind=FeedbackKind.THUMB, value=1.0, at=NOW)
    return Label(episode_id=f"ep-old-{number}", policy="default", user_id="cy", outcome=Outcome.COMPLETED, messages=(ASKED,), answer="ho",
                 verdict=1.0, votes=(vote,), episode_at=NOW, first_feedback_at=NOW, newest_feedback_at=NOW)  # fmt: skip


def test_the_join_goes_on_folding_while_it_looks_through_all_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(people_eraser, "POLL_RECORDS", 5)
    log, sender = install(monkeypatch, SimulatedLog()), producer()
    for number in range(OLD_LABELS):
        sender.publish(LABELS, old_label(number))
    session = JoinSession(JoinSettings(), PartContext(at("join"), ArtifactStore(str(tmp_path / "artifacts")), "default", tmp_path, tmp_path))
    for _ in range(5):
        session.turn()
    sender.publish(ERASURES, Erasure.of("ada", "operator", NOW + timedelta(days=1)))

    folded, turns = 0, 0
    while not log.records(ERASED):
        episode = Episode(episode_id=f"ep-{turns}", user_id="eve", messages=(ASKED,), answer="ho", started_at=NOW, ended_at=NOW)
        sender.publish(EPISODES, episode)
        sender.publish(FEEDBACK, Feedback(feedback_id=f"f-{turns}", episode_id=episode.episode_id, user_id="eve", kind=FeedbackKind.THUMB,
                                          thumb="up", at=NOW))  # fmt: skip
        read = session._eraser._scan._consumer.positions() if session._eraser._scan else None
        session.turn()
        if read and session._eraser._scan:
            now = session._eraser._scan._consumer.positions()
            assert sum(now.values()) - sum(read.values()) <= people_eraser.POLLS * people_eraser.POLL_RECORDS, "a turn reads a portion, no more"
        turns += 1
        folded = sum(not (record.key or b"").startswith(b"ep-old") for record in log.records(LABELS))
        assert turns < OLD_LABELS
    assert turns > OLD_LABELS // (people_eraser.POLLS * people_eraser.POLL_RECORDS)
    assert folded >= turns - 2, "no turn of the scan held up the people who came meanwhile"

    newest = {record.key: record.value for record in log.records(LABELS)}
    left = [LABELS.decode(value) for value in newest.values() if value is not None]
    assert not any(vote.user_id == "ada" for label in left for vote in label.votes)
    assert sum(label.episode_id.startswith("ep-old") and bool(label.votes) for label in left) == OLD_LABELS * 9 // 10
    session.close()


def test_an_erasure_that_comes_during_the_pass_gets_a_pass_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(people_eraser, "POLL_RECORDS", 5)
    log, sender = install(monkeypatch, SimulatedLog()), producer()
    for number in range(OLD_LABELS):
        sender.publish(LABELS, old_label(number))
    session = JoinSession(JoinSettings(), PartContext(at("join"), ArtifactStore(str(tmp_path / "artifacts")), "default", tmp_path, tmp_path))
    for _ in range(5):
        session.turn()
    sender.publish(ERASURES, Erasure.of("ada", "operator", NOW + timedelta(days=1)))
    while not session._eraser.is_scanning:
        session.turn()
    sender.publish(ERASURES, Erasure.of("bob", "operator", NOW + timedelta(days=1)))
    both = {Erasure.of(user, "operator", NOW).person for user in ("ada", "bob")}
    for _ in range(4 * OLD_LABELS):
        if {ERASED.decode(record.value).person for record in log.records(ERASED)} == both and not session._eraser.is_scanning:
            break
        session.turn()
    assert {ERASED.decode(record.value).person for record in log.records(ERASED)} == both
    newest = {record.key: record.value for record in log.records(LABELS)}
    assert not any(LABELS.decode(value).votes for value in newest.values() if value is not None)
    session.close()
