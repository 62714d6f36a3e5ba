"""The table of rights is the map of the pipeline seen from Kafka, a refusal names who, what and where, and the broker's certificates hold."""

import json
import socket
import ssl
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from kafka.errors import GroupAuthorizationFailedError, KafkaError, KafkaTimeoutError, SaslAuthenticationFailedError, TopicAuthorizationFailedError

from infra.local.broker_access import ADMIN, BrokerAccess
from infra.settings.part_addresses import PORT_OFFSET
from streams.core.errors import ConfigError, Unavailable
from streams.core.metrics import Metrics
from streams.core.topics import DEAD_LETTERS, TOPICS, Topic
from streams.kafka import PARTS, KafkaSettings, Producer, grants, principal_of
from streams.kafka.client_errors import translate_error

NAMES = {"any agent": "agent", "promotion": "promoter", "operators": "operator"}
ACTOR = KafkaSettings.model_validate({
    "bootstrap_servers": "k:9092", "security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "tidemill-actor",
    "sasl_password": "hush-hush",
})  # fmt: skip


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.short_name)
def test_whoever_the_map_names_at_a_topic_has_the_right(topic: Topic[object]) -> None:
    writers = {part for part, rights in PARTS.items() if topic in rights.writes}
    readers = {part for part, rights in PARTS.items() if topic in rights.reads}
    if topic is not DEAD_LETTERS:
        assert {NAMES.get(name, name) for name in topic.written_by} <= writers
    assert {NAMES.get(name, name) for name in topic.read_by} <= readers


def test_every_part_that_can_be_run_has_rights_and_few_may_write_what_decides() -> None:
    assert {"actor", *PORT_OFFSET} <= set(PARTS)
    writers = {topic.short_name: {part for part, rights in PARTS.items() if topic in rights.writes} for topic in TOPICS}
    assert writers["labels"] == {"streams"}
    assert writers["reward-models"] == {"reward"}
    assert writers["adapters"] == {"learner"}
    assert writers["attestations"] == {"actor"}
    assert writers["promotions"] == {"promoter", "console", "operator"}
    assert writers["erasures"] == {"operator"}
    assert PARTS["agent"].reads == ()


def test_rights_are_told_as_kafkas_own_tools_call_them() -> None:
    assert grants("critic") == [
        ("Read", "topic", "tidemill.episodes.v1"),
        ("Write", "topic", "tidemill.feedback.v1"),
        ("Write", "topic", "tidemill.dead-letters.v1"),
        ("Read", "group", "tidemill-critic-*"),
    ]
    assert principal_of("actor", "User:CN={part}") == "User:CN=actor"
    with pytest.raises(ConfigError, match=r"with \{part\} in it"):
        principal_of("actor", "User:tidemill")


def test_a_refusal_names_who_may_not_do_what_where() -> None:
    refused = translate_error("write to", TopicAuthorizationFailedError({"tidemill.labels.v1"}), ACTOR)
    assert isinstance(refused, ConfigError)
    assert str(refused).startswith("tidemill-actor may not write to Kafka (tidemill.labels.v1)")
    at_its_start = KafkaError("Unexpected error in InitProducerIdResponse: [Error 31] ClusterAuthorizationFailedError")
    told = str(translate_error("write to", at_its_start, ACTOR, "tidemill.labels.v1"))
    assert told.startswith("tidemill-actor may not write to Kafka (tidemill.labels.v1)")
    assert "(tidemill-join)" in str(translate_error("read from", GroupAuthorizationFailedError("tidemill-join"), ACTOR))
    unlettered = translate_error("connect to", SaslAuthenticationFailedError("bad credentials hush-hush"), ACTOR)
    assert isinstance(unlettered, ConfigError)
    assert "refused the login of tidemill-actor" in str(unlettered)
    assert "hush" not in str(refused) + str(unlettered)
    assert isinstance(translate_error("read from", KafkaTimeoutError("later"), ACTOR), Unavailable)


def test_a_kafka_that_hangs_up_is_away_and_has_not_refused_anybody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=hang_up_on_everybody, args=(listener,), daemon=True).start()
        there = {"bootstrap_servers": f"127.0.0.1:{listener.getsockname()[1]}", "security_protocol": "SASL_PLAINTEXT", "request_timeout_s": 0.2}
        with pytest.raises(Unavailable, match="cannot connect to Kafka"):
            Producer(ACTOR.model_copy(update=there), Metrics(), "test")


def hang_up_on_everybody(listener: socket.socket) -> None:
    with suppress(OSError):  # closed: the test is over
        while True:
            listener.accept()[0].close()


def test_the_guards_certificate_is_good_for_the_loopback_and_for_nobody_else(tmp_path: Path) -> None:
    access = BrokerAccess(tmp_path / "access", ["tidemill-actor"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "access" / "broker.pem")
    client = ssl.create_default_context(cafile=access.login("tidemill-actor", "127.0.0.1:1").ssl_cafile)
    assert shaken(server, client, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(server, client, "kafka.example.com")
    stranger = ssl.create_default_context(cafile=BrokerAccess(tmp_path / "other", []).login(ADMIN, "127.0.0.1:1").ssl_cafile)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken(server, stranger, "127.0.0.1")


def test_the_brokers_secrets_are_its_owners_alone_and_stay_the_same(tmp_path: Path) -> None:
    access = BrokerAccess(tmp_path / "access", ["tidemill-actor"])
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "access").iterdir()} == {0o600}
    passwords = json.loads((tmp_path / "access" / "users.json").read_text())
    assert set(passwords) == {ADMIN, "tidemill-actor"}
    assert len(set(passwords.values())) == 2
    login, again = (each.login("tidemill-actor", "k:1") for each in (access, BrokerAccess(tmp_path / "access", ["somebody-else"])))
    assert login == again
    assert passwords["tidemill-actor"] not in repr(login) + login.model_dump_json()
    with pytest.raises(ConfigError, match="has no user somebody-else"):
        BrokerAccess(tmp_path / "access", ["somebody-else"]).login("somebody-else", "k:1")
    told = access.properties(9092, "127.0.0.1:9092", 9093)
    assert told["allow.everyone.if.no.acl.found"] == "false"
    assert "PLAINTEXT" not in str(told)


def shaken(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bool:
    """One TLS handshake over a pair of sockets."""
    ours_, theirs = socket.socketpair()

    def answer() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        return client.wrap_socket(ours_, server_hostname=name).version() in ("TLSv1.2", "TLSv1.3")
    finally:
        ours_.close()
        thread.join(10)
