"""Settings: one frozen tree; defaults < TOML < environment < flags; a misspelled key fails."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from infra.demo.demo import seed_overrides
from infra.settings.config import load, secrets_as_environment, shipped, to_toml
from infra.settings.run_choice import of_run
from streams.core.errors import ConfigError
from streams.core.settings_section import SettingsSection


def test_flags_beat_the_environment_beats_toml_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[people]\npeople = 7\nseed = 7\nat_once = 7\n")
    settings = load(file, ["people.people=9"], {"TIDEMILL_PEOPLE__PEOPLE": "8", "TIDEMILL_PEOPLE__SEED": "8"})
    assert (settings.people.people, settings.people.seed, settings.people.at_once) == (9, 8, 7)
    assert settings.people.vote_ratio == load(None, (), {}).people.vote_ratio


@pytest.mark.parametrize(
    ("overrides", "environment", "told"),
    [
        (["people.peple=9"], {}, "people.peple: Extra inputs are not permitted"),
        (["peple.people=9"], {}, "peple: Extra inputs are not permitted"),
        (["people.people=none"], {}, "people.people: Input should be a valid integer"),
        (["people.people"], {}, "write section.key=value"),
        ([], {"TIDEMILL_PEPLE__PEOPLE": "9"}, "TIDEMILL_PEPLE__PEOPLE names no setting"),
        ([], {"TIDEMILL_PEOPLE__PEPLE": "9"}, "people.peple: Extra inputs are not permitted"),
        (["kafka.security_protocol=SASL_SSL"], {}, "needs sasl_mechanism, sasl_username and sasl_password"),
    ],
)
def test_a_wrong_setting_names_itself(overrides: list[str], environment: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load(None, overrides, environment)


def test_every_default_of_a_plain_setting_can_be_given_as_a_flag() -> None:
    settings = load(None, (), {})
    sections = {name: section for name in type(settings).model_fields if isinstance(section := getattr(settings, name), SettingsSection)}
    plain = [f"{name}.{key}={value}" for name, section in sections.items() for key, value in section if isinstance(value, (bool, int, float, str))]
    assert len(plain) > 150
    assert load(None, plain, {}) == settings


def test_a_missing_file_and_broken_toml_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file, and not one of the shipped demo, gpu, laptop, tiny"):
        load("nowhere", (), {})
    for broken in (b"people = [", "run_folder = 'x'".encode("utf-16"), b"run_folder = 'caf\xe9'"):
        (tmp_path / "bad.toml").write_bytes(broken)
        with pytest.raises(ConfigError, match=r"bad\.toml"):
            load(tmp_path / "bad.toml", (), {})


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf[people]\nseed = 3\n")
    assert load(tmp_path / "bom.toml", (), {}).people.seed == 3


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_configuration_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    settings = load(name, (), {})
    (tmp_path / "resolved.toml").write_text(to_toml(settings))
    assert load(tmp_path / "resolved.toml", (), {}) == settings


def test_a_secret_is_handed_to_children_and_never_printed() -> None:
    secret = "hunter2-hunter2"
    settings = load(None, (), {"TIDEMILL_KAFKA__SASL_PASSWORD": secret})
    assert secret not in to_toml(settings)
    assert "sasl_password" not in tomllib.loads(to_toml(settings))["kafka"]
    assert secret not in repr(settings)
    assert secrets_as_environment(settings) == {"TIDEMILL_KAFKA__SASL_PASSWORD": secret}


def test_the_tree_is_frozen() -> None:
    settings = load(None, (), {})
    with pytest.raises(ValidationError):
        settings.people.seed = 3  # type: ignore[misc]


def test_the_seed_of_a_demo_is_that_of_people_and_learner() -> None:
    settings = load("tiny", seed_overrides(7), {})
    assert (settings.people.seed, settings.learner.seed) == (7, 7)
    assert seed_overrides(None) == []


@pytest.mark.parametrize(("name", "value"), [
    ("TIDEMILL_PORT", "tcp://10.0.0.1:8000"), ("TIDEMILL_SERVICE_HOST", "10.0.0.1"), ("TIDEMILL_PORT_8000_TCP_ADDR", "10.0.0.1"),
    ("TIDEMILL_PORT_8000_TCP", "tcp://10.0.0.1:8000"), ("TIDEMILL_ACTOR_PORT", "tcp://10.0.0.1:8000"), ("TIDEMILL_ACTOR_SERVICE_PORT", "8000"),
    ("TIDEMILL_ACTOR_SERVICE_PORT_HTTP", "8000"), ("TIDEMILL_METRICS_PORT", "tcp://10.0.0.1:9100"), ("TIDEMILL_PORT_53_UDP_PROTO", "udp"),
    ("TIDEMILL_ACTOR_PORT", "tcp://[fd00::1]:80"), ("TIDEMILL_SERVICE_PORT_HTTP_METRICS", "80"), ("TIDEMILL_PORT_8000_TCP_START", "8000"),
    ("TIDEMILL_NAME", "/web/tidemill"), ("TIDEMILL_ENV_PATH", "/bin"), ("tidemill_port", "udp://10.0.0.1:53"),
])  # fmt: skip
def test_what_kubernetes_says_of_a_service_called_tidemill_is_no_setting(name: str, value: str) -> None:
    assert load(None, (), {name: value}) == load(None, (), {})


def test_a_misspelled_variable_still_fails_and_a_setting_of_that_name_still_counts() -> None:
    with pytest.raises(ConfigError, match="TIDEMILL_ACTOR_PORT names no setting"):
        load(None, (), {"TIDEMILL_ACTOR_PORT": "8000"})
    assert load(None, (), {"TIDEMILL_METRICS_PORT": "9100"}).metrics_port == 9100
    assert load(None, (), {"TIDEMILL_TRACES__URL": "tcp://collector:4318"}).traces.url == "tcp://collector:4318"
    with pytest.raises(ConfigError, match=r"actor\.port"):
        load(None, (), {"TIDEMILL_ACTOR__PORT": "tcp://10.0.0.1:8000"})


@pytest.mark.parametrize(("override", "expected"), [
    ('policy.base="tiny"', "tiny"), ("policy.base='tiny'", "tiny"), ("policy.base=ti'ny", Path("ti'ny")), ('actor.redact="emails"', ("emails",)),
    ("actor.redact='emails','cards'", ("emails", "cards")), ("kafka.compression=null", None), ("kafka.bootstrap_servers=null", None),
    ("kafka.sasl_password=\"s3cret\"", '"s3cret"'), ("actor.port=\"8000\"", 8000), ("critic.rubric=a=b", ("a=b",)),
])  # fmt: skip
def test_quotes_around_a_value_are_not_part_of_it_and_null_is_none(override: str, expected: Any) -> None:
    """Shells take quotes away; files of variables for containers keep them."""
    section, name = override.partition("=")[0].split(".")
    key, _, value = override.partition("=")
    for settings in (load(None, (override,), {}), load(None, (), {f"TIDEMILL_{key.replace('.', '__')}".upper(): value})):
        found = getattr(getattr(settings, section), name)
        assert (found.get_secret_value() if isinstance(found, SecretStr) else found) == expected


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("learner.attention_targets", "q_proj,v_proj", ("q_proj", "v_proj")), ("learner.attention_targets", '["q_proj"]', ("q_proj",)),
    ("actor.media_hosts", '["a.example.com", "b.example.com"]', ("a.example.com", "b.example.com")), ("otlp.redact", "emails", ("emails",)),
    ("actor.redact", "", ()), ("actor.redact", "emails, cards", ("emails", "cards")),
    ("actor.vllm_args", "--tensor-parallel-size=2, --quantization=fp8", ("--tensor-parallel-size=2", "--quantization=fp8")),
    ("actor.vllm_args", '["--kv-transfer-config", "{\\"a\\": 1, \\"b\\": 2}"]', ("--kv-transfer-config", '{"a": 1, "b": 2}')),
    ("critic.rubric", '["Is it kind, and short?"]', ("Is it kind, and short?",)),
])  # fmt: skip
def test_lists_are_set_by_a_flag_and_by_a_variable_alike(key: str, value: str, expected: tuple[str, ...]) -> None:
    section, name = key.split(".")
    variable = {f"TIDEMILL_{section}__{name}".upper(): value}
    for settings in (load(None, (f"{key}={value}",), {}), load(None, (), variable)):
        assert getattr(getattr(settings, section), name) == expected


def test_a_list_that_is_broken_json_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"actor.redact = '\[emails' is not JSON"):
        load(None, ("actor.redact=[emails",), {})


def test_what_is_asked_now_stands_above_what_the_run_was_started_with(tmp_path: Path) -> None:
    started = load("laptop", (f"run_folder={tmp_path}", "kafka.bootstrap_servers=127.0.0.1:9", "prune.keep_adapters=20", "actor.port=8123"), {})
    (tmp_path / "config.toml").write_text(to_toml(started))
    asked = load(None, (f"run_folder={tmp_path}", "prune.keep_adapters=3"), {"TIDEMILL_PRUNE__KEEP_REWARD_MODELS": "7"})
    running = of_run(asked)
    assert (running.prune.keep_adapters, running.prune.keep_reward_models) == (3, 7)
    assert (running.kafka.bootstrap_servers, running.actor.port) == ("127.0.0.1:9", 8123)
    assert of_run(load(None, (f"run_folder={tmp_path}",), {})).prune.keep_adapters == 20
