"""What can be known before a model is loaded is told before a model is loaded."""

import socket
from pathlib import Path

import pytest

from actor.server import arguments, check_port, environment
from actor.settings import ActorSettings
from streams.artifacts import ArtifactStore
from streams.errors import ConfigError
from streams.kafka import KafkaSettings
from streams.site import Site


def test_a_port_in_use_is_an_error_that_names_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"actor.port = 127.0.0.1:{port}"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_no_secret_is_handed_to_vllm(tmp_path: Path) -> None:
    kafka = KafkaSettings(bootstrap_servers="k:9092", security_protocol="SASL_SSL", sasl_mechanism="PLAIN", sasl_username="u", sasl_password="hush")
    site = Site(kafka, ArtifactStore(str(tmp_path)), "default", tmp_path, tmp_path)
    settings = ActorSettings()
    assert "hush" not in " ".join([*arguments(settings, site), *environment(settings).values(), repr(site)])


def test_the_base_answers_to_its_own_name_and_to_the_policys(tmp_path: Path) -> None:
    words = arguments(ActorSettings(), Site(KafkaSettings(), ArtifactStore(str(tmp_path)), "sailor", tmp_path, tmp_path))
    start = words.index("--served-model-name")
    assert words[start + 1 : start + 3] == ["base", "sailor"]
