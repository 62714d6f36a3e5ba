"""What is left of records and labels when somebody asked to be forgotten: nothing of theirs, and all of everybody else's."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.core.events import ANONYMOUS, DeadLetter, Episode, Erasure, Event, Feedback, FeedbackKind, Label, Message, person_of
from streams.core.person_ids import people_in, plain_id
from streams.core.topics import BY_NAME, DEAD_LETTERS, EPISODES, FEEDBACK, LABELS, Topic
from streams.erasure.forgotten_people import Forgotten, label_without, record_without
from streams.join.feedback_join import FeedbackJoin, StatesInMemory
from streams.join.join_settings import EvidenceSettings, JoinSettings
from streams.kafka import Record

T0 = datetime(2026, 1, 1, tzinfo=UTC)
T0_MS = int(T0.timestamp() * 1000)
ASKED_MS = T0_MS + 60_000
DEFAULT_EVIDENCE = EvidenceSettings()


def forgotten(*users: str) -> Forgotten:
    made = Forgotten()
    for user in users:
        made.add(Erasure.of(user, "operator", T0 + timedelta(minutes=1)), ASKED_MS)
    return made


def episode(user_id: str | None, episode_id: str = "ep") -> Episode:
    said = (Message(role="user", content="my cat is called Minka"),)
    return Episode(episode_id=episode_id, user_id=user_id, messages=said, answer="nice", started_at=T0, ended_at=T0)


def thumb(user_id: str, up: bool = True, seconds: float = 0.0, feedback_id: str | None = None) -> Feedback:
    return Feedback(feedback_id=feedback_id or f"fb-{user_id}", episode_id="ep", user_id=user_id, kind=FeedbackKind.THUMB,
                    thumb="up" if up else "down", at=T0 + timedelta(seconds=seconds))  # fmt: skip


def joined(*feedback: Feedback, asker: str | None = "asker") -> Label | None:
    join, label = FeedbackJoin(StatesInMemory(), JoinSettings(), lambda *_: None), None
    join.on_episode(episode(asker), T0)
    for each in feedback:
        label = join.on_feedback(each, T0) or label
    return label


def record(topic: Topic[Event], event: Event | bytes, ms: int = T0_MS) -> Record:
    return Record(topic.name, 0, 3, ms, b"ep", event if isinstance(event, bytes) else event.encode())


def test_a_label_without_somebody_is_the_label_that_never_knew_them() -> None:
    both, other = joined(thumb("ann"), thumb("bob", up=False, seconds=1)), joined(thumb("bob", up=False, seconds=1))
    assert both is not None
    assert other is not None
    assert label_without(both, forgotten("ann"), T0_MS, DEFAULT_EVIDENCE) == other


def test_a_label_on_what_they_asked_or_that_they_alone_gave_is_gone() -> None:
    label = joined(thumb("ann"))
    assert label is not None
    assert label_without(label, forgotten("asker"), T0_MS, DEFAULT_EVIDENCE) is None
    assert label_without(label, forgotten("ann"), T0_MS, DEFAULT_EVIDENCE) is None
    assert label_without(label, forgotten("somebody else"), T0_MS, DEFAULT_EVIDENCE) is label


def test_who_comes_back_afterwards_is_remembered_from_then_on() -> None:
    late = thumb("ann", seconds=120)
    kept = record(FEEDBACK, late, ASKED_MS + 1)
    assert record_without(kept, forgotten("ann"), DEFAULT_EVIDENCE) is kept
    early_but_brought_late = record(FEEDBACK, thumb("ann"), ASKED_MS + 1)
    assert record_without(early_but_brought_late, forgotten("ann"), DEFAULT_EVIDENCE).value is None
    by_a_wrong_clock = record(FEEDBACK, late, ASKED_MS - 1)
    assert record_without(by_a_wrong_clock, forgotten("ann"), DEFAULT_EVIDENCE).value is None


@pytest.mark.parametrize("topic", [EPISODES, FEEDBACK], ids=lambda topic: topic.short_name)
def test_their_records_keep_their_place_and_lose_their_bytes(topic: Topic[Event]) -> None:
    event: Event = episode("ann") if topic is EPISODES else thumb("ann")
    left = record_without(record(topic, event), forgotten("ann"), DEFAULT_EVIDENCE)
    assert (left.topic, left.partition, left.offset, left.timestamp_ms, left.value) == (topic.name, 0, 3, T0_MS, None)


def test_a_record_that_cannot_be_read_is_known_by_the_names_in_it() -> None:
    broken = record(EPISODES, b'{"messages": [{"content": "Minka"}], "user_id": "\\u0061nn", "answer":')
    assert record_without(broken, forgotten("ann"), DEFAULT_EVIDENCE).value is None
    assert record_without(broken, forgotten("bob"), DEFAULT_EVIDENCE) is broken


def test_a_dead_letter_keeps_its_reason_and_loses_what_was_said() -> None:
    raw = base64.b64encode(thumb("ann").encode()).decode()
    letter = DeadLetter(source_topic=FEEDBACK.name, source_partition=0, source_offset=1, reason="expired", message="late", record_base64=raw,
                        part="join", at=T0)  # fmt: skip
    left = record_without(record(DEAD_LETTERS, letter), forgotten("ann"), DEFAULT_EVIDENCE)
    assert DEAD_LETTERS.decode(left.value) == letter.model_copy(update={"record_base64": ""})
    assert record_without(record(DEAD_LETTERS, letter), forgotten("bob"), DEFAULT_EVIDENCE).value == letter.encode()


def test_a_letter_that_an_outbox_delivered_after_the_erasure_loses_what_was_set_aside_before_it() -> None:
    letter = DeadLetter(source_topic="otlp", source_partition=-1, source_offset=-1, reason="invalid", message="m", part="otlp", at=T0,
                        record_base64=base64.b64encode(b'{"user.id": "ann"}').decode(), people=(person_of("ann"),))  # fmt: skip
    for at, kept in ((T0, False), (T0 + timedelta(hours=1), True)):
        late = record(DEAD_LETTERS, letter.model_copy(update={"at": at}), ASKED_MS + 5000)
        assert (record_without(late, forgotten("ann"), DEFAULT_EVIDENCE) is late) == kept


def test_the_join_forgets_a_voter_and_an_asker() -> None:
    state = StatesInMemory()
    join = FeedbackJoin(state, JoinSettings(), lambda *_: None)
    join.on_episode(episode("asker"), T0)
    join.on_feedback(thumb("ann"), T0)
    both = join.on_feedback(thumb("bob", up=False), T0)
    assert both is not None
    covers = lambda users: lambda user, at, arrived: user in users  # noqa: E731
    done = join.erase("ep", covers({"ann"}))
    assert done.feedback == 1
    assert done.label is not None
    assert [vote.user_id for vote in done.label.votes] == ["bob"]
    assert done.label.erasures == 1
    assert (again := join.on_feedback(thumb("cyd", seconds=5), T0)) is not None
    assert again.erasures == 1
    assert join.erase("ep", covers({"asker"})).label_gone
    assert not state


def test_the_last_voter_gone_the_label_is_gone_and_the_episode_waits_on() -> None:
    state = StatesInMemory()
    join = FeedbackJoin(state, JoinSettings(), lambda *_: None)
    join.on_episode(episode("asker"), T0)
    join.on_feedback(thumb("ann"), T0)
    done = join.erase("ep", lambda user, at, arrived: user == "ann")
    assert done.label is None
    assert done.label_gone
    new = join.on_feedback(thumb("bob"), T0)
    assert new is not None
    assert [vote.user_id for vote in new.votes] == ["bob"]


names = st.text(min_size=1, max_size=20).filter(lambda text: all(ord(c) >= 32 and ord(c) != 127 and not 0xD800 <= ord(c) < 0xE000 for c in text))


@given(names)
def test_every_name_that_json_can_hold_is_found(name: str) -> None:
    assert (plain_id(name) or ANONYMOUS) in people_in(thumb(name, feedback_id="fb").encode())
    if plain_id(name) is None:
        return
    assert record_without(record(EPISODES, episode(name)), forgotten(name), DEFAULT_EVIDENCE).value is None


@given(st.sampled_from(sorted(BY_NAME)), st.binary(max_size=300))
def test_no_bytes_trip_it(topic: str, raw: bytes) -> None:
    assert record_without(Record(topic, 0, 0, 0, None, raw), forgotten("ann"), DEFAULT_EVIDENCE).value in (raw, None)


def test_an_erasure_does_not_name_whom_it_forgets() -> None:
    erasure = Erasure.of("ann", "operator", T0)
    assert b'"ann"' not in erasure.encode()
    assert erasure.person == person_of("ann")
    assert LABELS.compacted


def test_a_dead_letter_that_was_cut_before_the_name_is_found_by_whom_it_names() -> None:
    raw = base64.b64encode(b'{"text": "cut off long before the name').decode()
    letter = DeadLetter(source_topic="otlp", source_partition=-1, source_offset=-1, reason="invalid", message="m", record_base64=raw,
                        people=(person_of("ann"),), part="otlp", at=T0)  # fmt: skip
    left = record_without(record(DEAD_LETTERS, letter), forgotten("ann"), DEFAULT_EVIDENCE)
    assert DEAD_LETTERS.decode(left.value) == letter.model_copy(update={"record_base64": "", "people": ()})
    assert record_without(record(DEAD_LETTERS, letter), forgotten("bob"), DEFAULT_EVIDENCE).value == letter.encode()
