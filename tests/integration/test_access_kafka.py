"""Every part logs in as itself, over TLS, to a real Kafka that allows nothing else than the table of rights: all can work, and none can do more."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from infra.local.broker_access import ADMIN, BrokerAccess
from infra.local.embedded_broker import Broker, BrokerSettings
from infra.operate.doctor import examine
from infra.settings.run_choice import RunChoice
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import ConfigError, Unavailable
from streams.core.events import Episode, Feedback, FeedbackKind, Message
from streams.core.metrics import Metrics
from streams.core.part_context import PartContext
from streams.core.topics import ADAPTERS, EPISODES, FEEDBACK, LABELS, TOPICS
from streams.join import join_loop as joiner
from streams.join.join_session import GROUP
from streams.join.join_settings import JoinSettings
from streams.kafka import (
    PARTS,
    Consumer,
    KafkaSettings,
    Producer,
    committed_offsets,
    create_topics,
    grant_rights,
    kafka_answers,
    principal_of,
    read_to_end,
)
from tests.support.running import running, wait_for

NOW = datetime.now(UTC)
EPISODE = Episode(episode_id="ep-1", messages=(Message(role="user", content="hello"),), answer="hi", started_at=NOW, ended_at=NOW)
THUMB = Feedback(feedback_id="fb-1", episode_id="ep-1", user_id="ann", kind=FeedbackKind.THUMB, thumb="up", at=NOW)
NO_EVENT = b"not an event: readers set it aside"
STRANGER = "stranger"


class BrokerWithAccess:
    """A broker with access control, and everybody's login."""

    def __init__(self, broker: Broker, access: BrokerAccess) -> None:
        self._broker, self._access = broker, access

    def login(self, part: str) -> KafkaSettings:
        user = part if part == ADMIN else f"tidemill-{part}"
        settings = self._access.login(user, self._broker.bootstrap_servers)
        return settings.model_copy(update={"request_timeout_s": 10.0, "delivery_timeout_s": 20.0, "session_timeout_s": 6.0})


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerWithAccess]:
    folder = tmp_path_factory.mktemp("guarded")
    access = BrokerAccess(folder / "access", [f"tidemill-{part}" for part in (*PARTS, STRANGER)])
    with Broker(BrokerSettings(), folder / "broker", access=access) as broker:
        found = BrokerWithAccess(broker, access)
        create_topics(found.login(ADMIN))
        grant_rights(found.login(ADMIN), "User:tidemill-{part}")
        producer = Producer(found.login(ADMIN), Metrics(), "test")
        for topic in TOPICS:
            producer.send_raw(topic.name, b"key", NO_EVENT)
        producer.flush()
        producer.close()
        yield found


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_part_reads_and_writes_what_its_work_needs_and_nothing_else(kafka: BrokerWithAccess, part: str) -> None:
    settings, rights = kafka.login(part), PARTS[part]
    metrics = Metrics()
    producer = Producer(settings, metrics, part)
    if rights.reads:
        consumer = Consumer(settings, rights.reads, part, metrics)
        unread = {topic.name for topic in rights.reads}
        for _ in range(120):
            if not unread:
                break
            unread -= {record.topic for record in consumer.poll(0.5)}
        assert not unread
        consumer.close()
    for topic in rights.writes:
        producer.send_raw(topic.name, b"key", NO_EVENT)()
    forbidden = next(topic for topic in TOPICS if topic not in rights.writes)
    with pytest.raises(ConfigError, match=rf"tidemill-{part} may not write to Kafka \({forbidden.name}\)"):
        producer.send_raw(forbidden.name, b"key", b"x")()
    producer.close(timeout_s=1)
    if unknown := [topic for topic in TOPICS if topic not in (*rights.reads, *rights.writes)]:
        with pytest.raises(ConfigError, match=rf"topic {unknown[0].name} does not exist .* or tidemill-{part} may not read it"):
            Consumer(settings, unknown[:1], part, metrics)
    if written := [topic for topic in rights.writes if topic not in rights.reads]:  # who may write to a topic is told of it, and no more
        consumer = Consumer(settings, written[:1], part, metrics)
        with pytest.raises(ConfigError, match=rf"tidemill-{part} may not read from Kafka \({written[0].name}\)"):
            [consumer.poll(0.5) for _ in range(60)]
        consumer.close()


def test_who_was_given_no_rights_is_told_so_and_not_that_kafka_is_away(kafka: BrokerWithAccess) -> None:
    settings = kafka.login(STRANGER)
    producer = Producer(settings, Metrics(), "test")
    with pytest.raises(ConfigError, match=r"tidemill-stranger may not write to Kafka \(tidemill.episodes.v1\)"):
        producer.send(EPISODES, EPISODE)()
    producer.close(timeout_s=1)
    with pytest.raises(ConfigError, match="tidemill-stranger may not read it"):
        Consumer(settings, [LABELS], "test", Metrics())
    consumer = Consumer(settings, [EPISODES], "test", Metrics(), group=GROUP)
    with pytest.raises(ConfigError, match="tidemill-stranger may not read from Kafka"):
        [consumer.poll(0.5) for _ in range(60)]
    consumer.close()


def test_the_join_works_with_the_rights_of_streams(kafka: BrokerWithAccess, tmp_path: Path) -> None:
    agent = Producer(kafka.login("agent"), Metrics(), "agent")
    agent.publish(EPISODES, EPISODE)
    agent.publish(FEEDBACK, THUMB)
    agent.close()
    context = PartContext(kafka.login("streams"), ArtifactStore(str(tmp_path / "artifacts")), "default", tmp_path, tmp_path / "state")
    with running(partial(joiner.run, JoinSettings()), context):
        wait_for(lambda: any(record.key == b"ep-1" for record in read_to_end(kafka.login("learner"), LABELS, "test", Metrics())))
    assert committed_offsets(kafka.login("operator"), GROUP)


def test_a_group_that_is_not_ones_own_is_refused_by_name(kafka: BrokerWithAccess) -> None:
    consumer = Consumer(kafka.login("actor"), [ADAPTERS], "test", Metrics(), group=GROUP)
    with pytest.raises(ConfigError, match=r"tidemill-actor may not read from Kafka \(tidemill-join\)"):
        [consumer.poll(0.5) for _ in range(60)]
    consumer.close()


def test_a_wrong_password_and_no_password_are_told_apart_from_a_broker_that_is_away(
    kafka: BrokerWithAccess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = kafka.login("actor")
    wrong = KafkaSettings.model_validate(settings.model_dump() | {"sasl_password": "wrong", "request_timeout_s": 0.5})
    with pytest.raises(ConfigError, match="refused the login of tidemill-actor") as refused:
        Producer(wrong, Metrics(), "test")
    assert "wrong" not in str(refused.value)
    monkeypatch.setenv("TIDEMILL_KAFKA__SASL_PASSWORD", "wrong")
    known = wrong.model_dump(exclude={"sasl_password"}, exclude_defaults=True)
    choice = RunChoice(overrides=(f"run_folder={tmp_path}", *(f"kafka.{key}={value}" for key, value in known.items())))
    findings = {each.name: each for each in examine(choice)}
    assert not findings["kafka"].ok
    assert "refused the login of tidemill-actor" in findings["kafka"].sentence
    away = wrong.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})
    with pytest.raises(Unavailable):
        Producer(away, Metrics(), "test")
    other = settings.model_copy(update={"sasl_mechanism": "PLAIN", "request_timeout_s": 0.5})
    with pytest.raises(ConfigError, match=r"refused the login of tidemill-actor.*kafka\.sasl_mechanism"):
        Producer(other, Metrics(), "test")
    plain = KafkaSettings(bootstrap_servers=settings.bootstrap_servers, request_timeout_s=0.5)
    assert not kafka_answers(plain)


def test_principals_must_differ() -> None:
    with pytest.raises(ConfigError, match=r"with \{part\} in it"):
        principal_of("actor", "User:tidemill")


def test_nobody_but_an_administrator_gives_rights(kafka: BrokerWithAccess) -> None:
    with pytest.raises((ConfigError, Unavailable), match="rights"):
        grant_rights(kafka.login("agent"), "User:tidemill-{part}")
