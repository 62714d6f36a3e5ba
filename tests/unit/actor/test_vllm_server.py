"""What can be known before a model is loaded is told before a model is loaded."""

import argparse
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from actor.settings import ActorSettings
from actor.vllm_arguments import arguments, check_added, environment
from actor.vllm_server import check_port
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
    assert "hush" not in " ".join([*arguments(settings, tmp_path, "default"), *environment(settings).values(), repr(context)])


def test_the_base_answers_to_its_own_name_and_to_the_policys(tmp_path: Path) -> None:
    words = arguments(ActorSettings(), tmp_path, "sailor")
    start = words.index("--served-model-name")
    assert words[start + 1 : start + 3] == ["base", "sailor"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.7", "metadata.internal", "[::1]", "a b.com", "MEDIA.example.com", "example", ""])
def test_media_may_not_be_fetched_from_this_machine_or_its_neighbours(host: str) -> None:
    with pytest.raises(ValidationError, match="media_hosts"):
        ActorSettings(media_hosts=(host,))


def test_without_hosts_vllm_is_told_of_one_that_never_is(tmp_path: Path) -> None:
    words = arguments(ActorSettings(), tmp_path, "default")
    assert words[words.index("--allowed-media-domains") + 1] == "nowhere.invalid"
    named = arguments(ActorSettings(media_hosts=("media.example.com", "cdn.example.org")), tmp_path, "default")
    assert named[named.index("--allowed-media-domains") + 1 :][:2] == ["media.example.com", "cdn.example.org"]
    assert environment(ActorSettings())["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_the_defaults_suit_the_device(tmp_path: Path) -> None:
    on_cpu, on_gpu = (arguments(ActorSettings(gpu_memory_ratio=0.45), tmp_path, "default", on_gpu=gpu) for gpu in (False, True))
    assert "--enforce-eager" in on_cpu
    assert "--enforce-eager" not in on_gpu
    assert "--gpu-memory-utilization" not in on_cpu  # there it would be a part of the machine's memory
    assert on_gpu[on_gpu.index("--gpu-memory-utilization") + 1] == "0.45"
    assert "--enforce-eager" in arguments(ActorSettings(enforce_eager=True), tmp_path, "default", on_gpu=True)
    assert "--enforce-eager" not in arguments(ActorSettings(enforce_eager=False), tmp_path, "default")


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("model_tag", nargs="?", default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-model-len", type=int, default=None)
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    parser.add_argument("--enable-lora", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--middleware", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    return parser


@pytest.mark.parametrize(("added", "told"), [
    (["--dtype=bfloat16"], "--dtype is decided by actor.dtype; set that instead"),
    (["--dtype", "auto"], "decided by actor.dtype"),  # the default's value, said aloud, is said against ours too
    (["--max-model", "9"], "decided by actor.max_model_tokens"),  # an abbreviation
    (["--no-enable-lora"], "--enable-lora is not to be had: an actor serves adapters"),
    (["--middleware", "my.capture"], "--middleware is not to be had: capture and keys"),
    (["--seed", "2"], "--seed is not to be had: the actor sets it"),  # what is in neither table, but among the actor's own
    (["a-model"], "--model-tag is not to be had: policy.base names the base"),
    (["--config", "more.yaml"], "--config is not to be had"), (["--config=more.yaml"], "--config is not to be had"),
])  # fmt: skip
def test_an_added_argument_never_overrides_the_actors(parser: argparse.ArgumentParser, added: list[str], told: str) -> None:
    own = ["--dtype", "float32", "--max-model-len", "2048", "--enable-lora", "--seed", "1"]
    with pytest.raises(ConfigError, match=told) as caught:
        check_added(parser, own, added)
    assert "actor.vllm_args" in str(caught.value)


def test_an_added_argument_that_touches_nothing_of_ours_is_taken(parser: argparse.ArgumentParser) -> None:
    check_added(parser, ["--dtype", "float32", "--enable-lora"], ["-tp", "2"])
    check_added(parser, ["--dtype", "float32", "--enable-lora"], [])
