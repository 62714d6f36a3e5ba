"""Labels never go back: not when a join takes over with an older state, and not for long when one that was taken for dead writes again."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from streams.artifacts.artifact_store import ArtifactStore
from streams.core.events import Episode, Erasure, Feedback, FeedbackKind, Label, Message
from streams.core.part_context import PartContext
from streams.core.topics import DEAD_LETTERS, EPISODES, ERASURES, FEEDBACK, LABELS
from streams.erasure.forgotten_people import Forgotten
from streams.join import join_loop as joiner
from streams.join.feedback_join import FeedbackJoin, StatesInMemory
from streams.join.join_session import GROUP
from streams.join.join_settings import JoinSettings
from streams.join.ledger import balance, ledger_entries
from streams.join.stale_label_repair import known_through, labels_to_repair
from streams.kafka import Consumer, KafkaSettings, Record
from tests.support.running import running, wait_for
from tests.unit.streams.test_erasure_ring import Kafka

T0 = datetime.now(UTC)
ONE_BY_ONE = JoinSettings(batch_records=1, expire_every_s=0.02)
EPISODE = Episode(episode_id="ep", messages=(Message(role="user", content="hello"),), answer="hi", started_at=T0, ended_at=T0)


def thumb(number: int) -> Feedback:
    return Feedback(
        feedback_id=f"fb-{number}", episode_id="ep", user_id=f"u{number}", kind=FeedbackKind.THUMB, thumb="up", at=T0 + timedelta(seconds=number)
    )


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    return Kafka(monkeypatch)


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[dict[tuple[str, int], int]]:
    """Every commit of a group, in order."""
    seen: list[dict[tuple[str, int], int]] = []
    commit = Consumer.commit

    def seeing(consumer: Consumer, positions: dict[tuple[str, int], int]) -> bool:
        seen.append(dict(positions))
        return commit(consumer, positions)

    monkeypatch.setattr(Consumer, "commit", seeing)
    return seen


@contextmanager
def joining(folder: Path) -> Iterator[None]:
    """A join with a disk of its own."""
    context = PartContext(KafkaSettings(bootstrap_servers="nobody:1"), ArtifactStore(str(folder / "artifacts")), "default", folder, folder / "state")
    with running(lambda s: joiner.run(ONE_BY_ONE, s), context):
        yield


def chain(kafka: Kafka) -> list[int]:
    """How much feedback each label of the episode knows, in the order of the log."""
    return [len(LABELS.decode(record.value).feedback_ids) if record.value else 0 for record in kafka.records(LABELS) if record.key == b"ep"]


def knows(kafka: Kafka, count: int) -> bool:
    return chain(kafka)[-1:] == [count]


def join_of(count: int) -> tuple[FeedbackJoin, Label]:
    """A state that knows so many thumbs, and the label of it."""
    join = FeedbackJoin(StatesInMemory(), JoinSettings(), lambda *_: None)
    join.on_episode(EPISODE, T0)
    for number in range(count):
        join.on_feedback(thumb(number), T0)
    label = join.label("ep")
    assert label is not None
    return join, label


def test_who_takes_over_with_an_older_state_says_nothing_until_it_knows_as_much(
    kafka: Kafka, commits: list[dict[tuple[str, int], int]], tmp_path: Path
) -> None:
    producer = kafka.producer()
    producer.send(EPISODES, EPISODE)
    producer.send(FEEDBACK, thumb(0))
    with joining(tmp_path / "here"):
        wait_for(lambda: knows(kafka, 1))
    for number in (1, 2, 3):
        producer.send(FEEDBACK, thumb(number))
    with joining(tmp_path / "there"):
        wait_for(lambda: knows(kafka, 4))
    producer.send(FEEDBACK, thumb(4))
    with joining(tmp_path / "here"):
        wait_for(lambda: knows(kafka, 5))
    assert chain(kafka) == [1, 2, 3, 4, 5], "each says more than the one before, and none is said twice"
    for key in {key for commit in commits for key in commit}:
        told = [commit[key] for commit in commits if key in commit]
        assert told == sorted(told), f"{key} went back"


def test_what_was_set_aside_is_not_set_aside_again_by_who_takes_over(kafka: Kafka, tmp_path: Path) -> None:
    producer = kafka.producer()
    producer.send(EPISODES, EPISODE)
    producer.send_raw(FEEDBACK.name, b"ep", b"not json")
    producer.send(FEEDBACK, thumb(0))
    with joining(tmp_path / "here"):
        wait_for(lambda: knows(kafka, 1))
    producer.send(FEEDBACK, thumb(1))
    with joining(tmp_path / "there"):
        wait_for(lambda: knows(kafka, 2))
    assert len(kafka.records(DEAD_LETTERS)) == 1


def test_an_older_label_from_a_join_that_was_taken_for_dead_is_replaced_at_once_or_after_a_restart(kafka: Kafka, tmp_path: Path) -> None:
    producer, (_, old) = kafka.producer(), join_of(1)
    producer.send(EPISODES, EPISODE)
    for number in range(3):
        producer.send(FEEDBACK, thumb(number))
    with joining(tmp_path / "here"):
        wait_for(lambda: knows(kafka, 3))
        producer.send(LABELS, old)
        wait_for(lambda: knows(kafka, 3))
        producer.retract(LABELS, "ep")
        wait_for(lambda: knows(kafka, 3))
    producer.send(LABELS, old)
    with joining(tmp_path / "here"):
        wait_for(lambda: knows(kafka, 3))
    said = len(kafka.records(LABELS))
    with joining(tmp_path / "there"):
        producer.send(FEEDBACK, thumb(3))
        wait_for(lambda: knows(kafka, 4))
    assert len(kafka.records(LABELS)) == said + 1, "what is right is left alone"
    books = balance(ledger_entries(kafka.records(EPISODES)), ledger_entries(kafka.records(FEEDBACK)), kafka.records(LABELS), [],
                    kafka.passed)  # fmt: skip
    assert books.balanced, str(books)


def test_only_what_forgot_something_is_sent_again() -> None:
    join, ours = join_of(3)
    _, old = join_of(2)
    _, newer = join_of(4)

    def told(*labels: Label | bytes | None) -> list[Label | None]:
        values = [label.encode() if isinstance(label, Label) else label for label in labels]
        records = [Record(LABELS.name, 0, offset, 0, b"ep", value) for offset, value in enumerate(values)]
        return list(labels_to_repair(records, join, Forgotten(), JoinSettings()).values())

    assert told(old) == [ours]
    assert told(b"not json") == [ours]
    assert told(None) == [ours]
    assert told(ours, old) == [ours]
    assert told(old, ours) == []
    assert told(newer) == []
    assert told(newer.model_copy(update={"erasures": 1})) == []
    assert labels_to_repair([Record(LABELS.name, 0, 0, 0, b"unheard of", old.encode())], join, Forgotten(), JoinSettings()) == {}


def test_what_is_written_again_of_an_episode_that_was_wholly_erased_is_taken_back(kafka: Kafka, tmp_path: Path) -> None:
    hers = EPISODE.model_copy(update={"user_id": "ann"})
    join = FeedbackJoin(StatesInMemory(), JoinSettings(), lambda *_: None)
    join.on_episode(hers, T0)
    old = join.on_feedback(thumb(0), T0)
    assert old is not None
    producer = kafka.producer()
    producer.send(EPISODES, hers)
    producer.send(FEEDBACK, thumb(0))
    with joining(tmp_path / "here"):
        wait_for(lambda: knows(kafka, 1))
        producer.send(ERASURES, Erasure.of("ann", "test", datetime.now(UTC)))
        wait_for(lambda: chain(kafka) == [1, 0])
        producer.send(LABELS, old)  # by a join that was taken for dead
        wait_for(lambda: chain(kafka) == [1, 0, 1, 0])
    producer.send(LABELS, old)
    with joining(tmp_path / "here"):
        wait_for(lambda: chain(kafka) == [1, 0, 1, 0, 1, 0])
        producer.send(LABELS, other := old.model_copy(update={"episode_id": "another", "user_id": "u9"}))
        producer.send(LABELS, old)
        wait_for(lambda: len(kafka.records(LABELS)) == 9)
    assert chain(kafka)[-1] == 0
    assert [record.value for record in kafka.records(LABELS) if record.key == b"another"] == [other.encode()], "of others' nothing is touched"


def test_a_label_that_the_state_let_go_of_is_written_again_without_who_is_forgotten() -> None:
    _, old = join_of(3)
    forgotten = Forgotten()
    forgotten.add(Erasure.of("u1", "test", T0 + timedelta(days=1)), 0)
    nobody = FeedbackJoin(StatesInMemory(), JoinSettings(), lambda *_: None)
    record = Record(LABELS.name, 0, 0, 0, b"ep", old.encode())
    (label,) = labels_to_repair([record], nobody, forgotten, JoinSettings()).values()
    assert label is not None
    assert [vote.user_id for vote in label.votes] == ["u0", "u2"]
    assert label.erasures == old.erasures + 1
    assert labels_to_repair([record, Record(LABELS.name, 0, 1, 0, b"ep", label.encode())], nobody, forgotten, JoinSettings()) == {}


def test_labels_count_as_known_up_to_where_another_wrote_between() -> None:
    assert known_through(5, [7, 5, 6]) == 8
    assert known_through(5, []) == 5
    assert known_through(5, [6, 7]) == 5
    assert known_through(5, [5, 7]) == 5


def test_a_join_that_has_lost_its_partitions_calls_no_label_looked_at(kafka: Kafka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would compare what its follower wrote with a state that is older, and never look there again."""
    producer, (_, old), (_, newer) = kafka.producer(), join_of(1), join_of(2)
    producer.send(EPISODES, EPISODE)
    producer.send(FEEDBACK, thumb(0))
    with joining(tmp_path / "here"):
        wait_for(lambda: knows(kafka, 1))
        refused = threading.Event()
        commit = Consumer.commit
        monkeypatch.setattr(Consumer, "commit", lambda *given: refused.set())
        for label in (newer, old):  # the follower's, then one that was on its way
            producer.send(LABELS, label)
        wait_for(refused.is_set)
    monkeypatch.setattr(Consumer, "commit", commit)
    producer.send(FEEDBACK, thumb(1))
    committed = kafka.log.group(GROUP).committed
    committed.update({place: kafka.log.partitions[place].end for place in committed})  # the follower's
    with joining(tmp_path / "here"):
        wait_for(lambda: knows(kafka, 2))
