"""The books balance when nothing is lost, and name what is when something was."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.cli.main import main
from streams.core.errors import InvalidEvent
from streams.core.events import DeadLetter, Episode, Event, Feedback, FeedbackKind, Message
from streams.core.topics import DEAD_LETTERS, EPISODES, FEEDBACK, LABELS, Topic
from streams.join.feedback_join import FeedbackJoin, StatesInMemory
from streams.join.join_settings import JoinSettings
from streams.join.ledger import Ledger, Row, balance, ledger_entries
from streams.kafka import Record

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def episode(episode_id: str) -> Episode:
    return Episode(episode_id=episode_id, messages=(Message(role="user", content="x"),), started_at=T0, ended_at=T0)


def thumb(feedback_id: str, episode_id: str) -> Feedback:
    return Feedback(feedback_id=feedback_id, episode_id=episode_id, kind=FeedbackKind.THUMB, thumb="up", at=T0)


class Log:
    """A log of one partition in memory, and a join that has passed a part of it."""

    def __init__(self) -> None:
        self.topics: dict[str, list[Record]] = {topic.name: [] for topic in (EPISODES, FEEDBACK, LABELS, DEAD_LETTERS)}
        self.passed: dict[tuple[str, int], int] = {}
        self.join = FeedbackJoin(StatesInMemory(), JoinSettings(window_days=1), lambda arrived, error: self.set_aside(arrived.offset, error.reason))

    def publish(self, topic: Topic[Event], event: Event | bytes, hours: float = 0) -> int:
        records = self.topics[topic.name]
        value = event if isinstance(event, bytes) else event.encode()
        records.append(Record(topic.name, 0, len(records), int(T0.timestamp() * 1000 + hours * 3_600_000), None, value))
        return len(records) - 1

    def set_aside(self, offset: int, reason: str, topic: str = FEEDBACK.name, part: str = "join") -> None:
        where = {"source_topic": topic, "source_partition": 0, "source_offset": offset}
        letter = DeadLetter.model_validate({**where, "reason": reason, "message": "", "record_base64": "", "part": part, "at": T0})
        self.publish(DEAD_LETTERS, letter)

    def joined(self, topics: tuple[str, ...] = (EPISODES.name, FEEDBACK.name)) -> None:
        """The join passes all that is there of these topics."""
        for name in topics:
            for record in self.topics[name][self.passed.get((name, 0), 0) :]:
                now = T0 + timedelta(milliseconds=record.timestamp_ms - T0.timestamp() * 1000)
                try:
                    if name == EPISODES.name:
                        label = self.join.on_episode(EPISODES.decode(record.value), now)
                    else:
                        label = self.join.on_feedback(FEEDBACK.decode(record.value), now, record.offset)
                except InvalidEvent as error:
                    self.set_aside(record.offset, error.reason, name)
                    continue
                if label is not None:
                    self.publish(LABELS, label)
            self.passed[name, 0] = len(self.topics[name])

    def ledger(self, **span: datetime) -> Ledger:
        read = self.topics
        letters = read[DEAD_LETTERS.name]
        return balance(ledger_entries(read[EPISODES.name]), ledger_entries(read[FEEDBACK.name]), read[LABELS.name], letters, self.passed, **span)


def test_an_empty_log_balances() -> None:
    assert Log().ledger().balanced


def test_each_record_is_where_it_is() -> None:
    log = Log()
    log.publish(EPISODES, episode("a"))
    log.publish(EPISODES, episode("a"))
    log.publish(EPISODES, b"broken")
    log.publish(FEEDBACK, thumb("1", "a"))
    log.publish(FEEDBACK, thumb("1", "a"))
    log.publish(FEEDBACK, thumb("2", "nowhere"))
    log.publish(FEEDBACK, thumb("3", "a"), hours=30)
    log.publish(FEEDBACK, b"broken")
    log.joined()
    log.publish(EPISODES, episode("b"))
    log.publish(FEEDBACK, thumb("4", "a"))
    episodes, feedback = log.ledger().rows
    assert episodes == Row(EPISODES.name, 4, joined=1, pending=1, expired=0, dead_lettered=1, duplicates=1, missing=())
    assert feedback == Row(FEEDBACK.name, 6, joined=1, pending=2, expired=1, dead_lettered=1, duplicates=1, missing=())
    assert log.ledger().balanced


def test_feedback_that_the_join_passed_and_no_label_names_is_missing() -> None:
    log = Log()
    log.publish(EPISODES, episode("a"))
    log.publish(FEEDBACK, thumb("1", "a"))
    log.joined()
    log.topics[LABELS.name].clear()
    assert not log.ledger().balanced
    assert log.ledger().missing == ("1",)
    assert str(log.ledger()).splitlines() == [
        "episodes 1 published = 1 joined + 0 pending + 0 expired + 0 dead-lettered",
        "feedback 1 published = 0 joined + 0 pending + 0 expired + 0 dead-lettered + 1 MISSING",
        "missing: 1",
    ]


def test_a_newer_label_that_forgot_some_is_found_out() -> None:
    log = Log()
    log.publish(EPISODES, episode("a"))
    log.publish(FEEDBACK, thumb("1", "a"))
    log.joined()
    first = log.topics[LABELS.name][0]
    log.publish(FEEDBACK, thumb("2", "a"))
    log.joined()
    log.topics[LABELS.name].append(first)
    assert log.ledger().missing == ("2",)


@pytest.mark.parametrize("topic", [EPISODES, FEEDBACK])
def test_a_broken_record_that_was_passed_and_not_set_aside_is_missing_by_its_place(topic: Topic[Event]) -> None:
    log = Log()
    offset = log.publish(topic, b"broken")
    assert log.ledger().balanced
    log.passed[topic.name, 0] = 1
    assert log.ledger().missing == (f"{topic.name}/0/0",)
    log.set_aside(offset, "not_json", topic.name, part="lake")
    assert not log.ledger().balanced
    log.set_aside(offset, "not_json", topic.name)
    assert log.ledger().balanced
    assert sum(row.dead_lettered for row in log.ledger().rows) == 1


def test_feedback_waits_while_the_join_has_not_passed_its_episode() -> None:
    log = Log()
    log.publish(EPISODES, episode("a"))
    log.publish(FEEDBACK, thumb("1", "a"))
    log.joined((FEEDBACK.name,))
    assert log.ledger().balanced
    assert log.ledger().rows[1].pending == 1


def test_a_span_counts_only_what_arrived_in_it() -> None:
    log = Log()
    log.publish(EPISODES, episode("a"))
    for hour in range(4):
        log.publish(FEEDBACK, thumb(str(hour), "a"), hours=hour)
    log.joined()
    row = log.ledger(since=T0 + timedelta(hours=1), until=T0 + timedelta(hours=3)).rows[1]
    assert (row.published, row.joined) == (2, 2)


@given(st.lists(st.tuples(st.sampled_from("ef"), st.sampled_from("abc"), st.sampled_from("123"), st.integers(0, 50)), max_size=25), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_books_balance_whatever_the_join_was_given(steps: list[tuple[str, str, str, int]], rounds: int) -> None:
    log = Log()
    for number, (kind, episode_id, feedback_id, hours) in enumerate(steps):
        log.publish(EPISODES, episode(episode_id), hours) if kind == "e" else log.publish(FEEDBACK, thumb(feedback_id, episode_id), hours)
        if number % (rounds + 2) == 0:
            log.joined()
    assert log.ledger().balanced
    log.joined()
    log.join.expire(T0 + timedelta(days=9))
    assert log.ledger().balanced
    assert log.ledger().rows[0].pending == log.ledger().rows[1].pending == 0


def test_the_command_names_what_is_missing_and_exits_3(monkeypatch: pytest.MonkeyPatch) -> None:
    log, asked = Log(), []
    log.publish(EPISODES, episode("a"))
    for number in range(30):
        log.publish(FEEDBACK, thumb(f"fb-{number}", "a"), hours=1)
    log.joined()
    log.topics[LABELS.name].clear()

    def read(_: object, since: datetime | None, until: datetime | None) -> Ledger:
        asked.append((since, until))
        return log.ledger(since=since, until=until)

    monkeypatch.setattr("infra.operate.ring_status.read_ledger", read)
    command = ["ledger", "--set", "kafka.bootstrap_servers=nowhere:1"]
    told = CliRunner().invoke(main, command)
    assert (told.exit_code, "30 MISSING" in told.output, "and 10 more" in told.output) == (3, True, True)
    told = CliRunner().invoke(main, [*command, "--json", "--until", "2026-01-01T02:00", "--since", "2026-01-01"])
    assert (told.exit_code, asked[-1]) == (3, (T0, T0 + timedelta(hours=2)))
    assert json.loads(told.output)["rows"][1]["missing"] == [f"fb-{number}" for number in range(30)]
    assert CliRunner().invoke(main, [*command, "--until", "2026-01-01T00:30"]).exit_code == 0
