"""The embedded broker is a real Apache Kafka that keeps its promises."""

import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from infra.local.embedded_broker import Broker, BrokerSettings
from infra.local.kafka_jars import cache_folder, kafka_jars, locked_checksums, verify
from streams.core.errors import BadArtifact, ConfigError, Unavailable
from streams.core.events import Erasure, person_of
from streams.core.metrics import Metrics
from streams.core.topics import ERASURES, TOPICS
from streams.kafka import KafkaSettings, Producer, create_topics, read_to_end, topic_differences

NOW = "2026-01-01T00:00:00Z"


def test_every_acknowledged_record_survives_kill_9_and_the_port_stays(tmp_path: Path) -> None:
    (tmp_path / "cluster-id").write_text("-8n1xdOAQ8y8QxGqvKpqBw")  # of random ids one in 64 begins like an option of the command line
    broker = Broker(BrokerSettings(), tmp_path)
    broker.start()
    settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
    try:
        assert sorted(create_topics(settings)) == sorted(t.name for t in TOPICS)
        assert topic_differences(settings) == {}
        producer = Producer(settings, Metrics(), "test")
        places = [
            producer.publish(ERASURES, Erasure.model_validate({"person": person_of(f"u{i}"), "requested_by": "op", "at": NOW})) for i in range(20)
        ]
        assert [p.offset for p in places] == list(range(20))
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        producer.close(timeout_s=0)
        broker.relaunch()
        broker.await_ready()
        assert KafkaSettings(bootstrap_servers=broker.bootstrap_servers) == settings
        assert [ERASURES.decode(r.value).person for r in read_to_end(settings, ERASURES, "test", Metrics())] == [
            person_of(f"u{i}") for i in range(20)
        ]
    finally:
        broker.stop()
    assert not broker.running()


def test_a_folder_in_use_is_refused(fresh_broker: Broker, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in use by another broker"):
        Broker(BrokerSettings(), tmp_path / "broker").start()


def test_a_folder_of_another_cluster_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").write_text("version=1\ncluster.id=another-cluster\n")
    with pytest.raises(ConfigError, match="belongs to Kafka cluster another-cluster"), Broker(BrokerSettings(), tmp_path):
        pass


def test_a_port_in_use_is_refused_before_the_jvm_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"broker.port = {port} is in use"), Broker(BrokerSettings(port=port), tmp_path):
            pass


def test_a_folder_keeps_its_port_until_another_program_takes_it(tmp_path: Path) -> None:
    broker = Broker(BrokerSettings(), tmp_path)
    port = broker._choose_port()
    assert Broker(BrokerSettings(), tmp_path)._choose_port() == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        broker.port = port
        with pytest.raises(Unavailable, match=f"port {port}, where this run's parts look for Kafka, is taken"):
            broker._choose_port()
        moved = Broker(BrokerSettings(), tmp_path)._choose_port()
    assert moved != port
    assert Broker(BrokerSettings(), tmp_path)._choose_port() == moved


def test_a_jar_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    jars = kafka_jars(cache_folder())
    copy = tmp_path / "jars"
    shutil.copytree(jars, copy)
    verify(copy, locked_checksums())
    victim = copy / f"kafka-clients-{'4.4.0'}.jar"
    data = bytearray(victim.read_bytes())
    data[1000] ^= 1
    victim.write_bytes(data)
    with pytest.raises(BadArtifact, match=r"kafka-clients-4\.4\.0\.jar has SHA-256"):
        verify(copy, locked_checksums())
    victim.unlink()
    with pytest.raises(BadArtifact, match=r"lacks kafka-clients-4\.4\.0\.jar"):
        verify(copy, locked_checksums())


def test_an_old_java_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    old.chmod(0o755)
    with pytest.raises(ConfigError, match="is version 11; Kafka needs 17"), Broker(BrokerSettings(java=old), tmp_path / "b"):
        pass
