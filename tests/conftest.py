"""What every suite shares: a real broker for the integration tests, a fresh one for each module."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: two threads beside another busy process come to a crawl

from infra.local.embedded_broker import Broker, BrokerSettings
from learner.models.base_cache import prepare_base
from streams.kafka import KafkaSettings, create_topics


@pytest.fixture(scope="module")
def kafka_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaSettings]:
    """A running Kafka with Tidemill's topics, empty at a module's start: an embedded one, or the server that TIDEMILL_TEST_KAFKA names
    (as it is: give it one that holds nothing else)."""
    if named := os.environ.get("TIDEMILL_TEST_KAFKA"):
        settings = KafkaSettings(bootstrap_servers=named)
        create_topics(settings)
        yield settings
        return
    with Broker(BrokerSettings(), tmp_path_factory.mktemp("broker")) as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        create_topics(settings)
        yield settings


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base's folder, built once a session."""
    return prepare_base("tiny", tmp_path_factory.mktemp("bases"))


@pytest.fixture
def fresh_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own, to kill or to fill; topics are the test's to create."""
    with Broker(BrokerSettings(), tmp_path / "broker") as broker:
        yield broker
