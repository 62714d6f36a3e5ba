"""What can be known before a model is loaded is told before a model is loaded."""

import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from actor.settings import ActorSettings
from actor.vllm_server import arguments, check_port, environment
from streams.artifacts.artifact_store import ArtifactStore
from streams.core.errors import ConfigError
from streams.core.part_context import PartContext
from streams.kafka import KafkaSettings


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
    context = PartContext(kafka, ArtifactStore(str(tmp_path)), "default", tmp_path, tmp_path)
    settings = ActorSettings()
    assert "hush" not in " ".join([*arguments(settings, context), *environment(settings).values(), repr(context)])


def test_the_base_answers_to_its_own_name_and_to_the_policys(tmp_path: Path) -> None:
    words = arguments(ActorSettings(), PartContext(KafkaSettings(), ArtifactStore(str(tmp_path)), "sailor", tmp_path, tmp_path))
    start = words.index("--served-model-name")
    assert words[start + 1 : start + 3] == ["base", "sailor"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.7", "metadata.internal", "[::1]", "a b.com", "MEDIA.example.com", "example", ""])
def test_media_may_not_be_fetched_from_this_machine_or_its_neighbours(host: str) -> None:
    with pytest.raises(ValidationError, match="media_hosts"):
        ActorSettings(media_hosts=(host,))


def test_without_hosts_vllm_is_told_of_one_that_never_is(tmp_path: Path) -> None:
    context = PartContext(KafkaSettings(), ArtifactStore(str(tmp_path)), "default", tmp_path, tmp_path)
    words = arguments(ActorSettings(), context)
    assert words[words.index("--allowed-media-domains") + 1] == "nowhere.invalid"
    named = arguments(ActorSettings(media_hosts=("media.example.com", "cdn.example.org")), context)
    assert named[named.index("--allowed-media-domains") + 1 :][:2] == ["media.example.com", "cdn.example.org"]
    assert environment(ActorSettings())["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
