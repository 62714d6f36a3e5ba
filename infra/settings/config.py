"""One frozen tree of settings for the whole ring: defaults < TOML < environment (``TIDEMILL_ACTOR__PORT``) < flags (``--set actor.port=…``)."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from actor.critic.critic_settings import CriticSettings
from actor.otlp.otlp_settings import OtlpSettings
from actor.promotion.promotion_settings import PromotionSettings
from actor.settings import ActorSettings
from dashboards.console.console_settings import ConsoleSettings
from infra.local.broker_settings import BrokerSettings
from infra.operate.prune_settings import PruneSettings
from infra.settings.policy_settings import PolicySettings
from infra.settings.text_values import is_service_link, values_of
from infra.simulated_people.people_settings import PeopleSettings
from learner.settings import LearnerSettings
from reward.settings import RewardSettings
from streams.artifacts.signing_settings import SigningSettings
from streams.core.errors import ConfigError
from streams.core.settings_section import SettingsSection
from streams.core.traces_settings import TracesSettings
from streams.erasure.erasure_settings import ErasureSettings
from streams.join.join_settings import JoinSettings
from streams.kafka import KafkaSettings
from streams.lake.lake_settings import LakeSettings

PREFIX = "TIDEMILL_"
# Variables that are not settings: the cache folder, the tests' Kafka, the capture inside vLLM.
NOT_SETTINGS = {"TIDEMILL_CACHE", "TIDEMILL_TEST_KAFKA", "TIDEMILL_CAPTURE"}


class Settings(BaseSettings):
    """All settings. Frozen; unknown keys are an error."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, use_attribute_docstrings=True)

    run_folder: Path = Path("runs/default")
    """Folder for everything that this run stores: the broker's data, artifacts, lake, state, logs, report."""
    run_id: str = Field(default="", max_length=100)
    """Names this run in what ``/healthz`` and ``/readyz`` answer. ``up`` and ``demo`` make a new one each time they start."""
    artifacts_uri: str | None = None
    """Folder or URI (``file://``, ``s3://``, ``gs://``) of the artifacts. None: ``artifacts`` in the run's folder."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """First of seven loopback ports for ``/metrics``, ``/healthz`` and ``/readyz``: streams, reward, learner, promoter, critic, otlp, and the
    learner's Ray, in this order. 0: free ones. The actor serves them on its own port."""
    policy: PolicySettings = PolicySettings()
    signing: SigningSettings = SigningSettings()
    kafka: KafkaSettings = KafkaSettings()
    broker: BrokerSettings = BrokerSettings()
    join: JoinSettings = JoinSettings()
    lake: LakeSettings = LakeSettings()
    erasure: ErasureSettings = ErasureSettings()
    reward: RewardSettings = RewardSettings()
    learner: LearnerSettings = LearnerSettings()
    actor: ActorSettings = ActorSettings()
    promotion: PromotionSettings = PromotionSettings()
    critic: CriticSettings = CriticSettings()
    otlp: OtlpSettings = OtlpSettings()
    traces: TracesSettings = TracesSettings()
    people: PeopleSettings = PeopleSettings()
    console: ConsoleSettings = ConsoleSettings()
    prune: PruneSettings = PruneSettings()

    @property
    def gated_policy(self) -> str | None:
        """The policy in gated mode (``promotion.mode``); None in newest mode."""
        return self.policy.name if self.promotion.mode == "gated" else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # ``load`` merges the sources: a TOML table and a variable may set the same section


def load(config: str | Path | None = None, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Settings:
    """The resolved settings. ``config``: a file, or a shipped configuration (demo, laptop, gpu); ``overrides`` are ``section.key=value``.

    Raises ConfigError that names the key, the problem, and where to fix it.
    """
    tree = _toml(config) if config is not None else {}
    _merge(tree, _from_environment(os.environ if environment is None else environment))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override!r}: write section.key=value")
        _merge(tree, nested(key.split("."), value))
    return _resolved(tree, config)


def load_over(config: Path, settings: Settings) -> Settings:
    """The settings in ``config``, overridden by those that were given explicitly in ``settings`` (flag, variable or file). Raises ConfigError."""
    tree = _toml(config)
    _merge(tree, settings.model_dump(exclude_unset=True, exclude_none=True))
    return _resolved(tree, config)


def _resolved(tree: dict[str, Any], config: str | Path | None) -> Settings:
    try:
        return Settings(**tree)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors(include_input=False, include_url=False))
        raise ConfigError(f"settings{f' ({config})' if config else ''}: {problems}") from None


def shipped() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(f.name.removesuffix(".toml") for f in resources.files("infra.settings").joinpath("configs").iterdir() if f.name.endswith(".toml"))


def to_toml(settings: Settings) -> str:
    """The settings as TOML, without unset keys and without secrets."""
    return tomli_w.dumps(_plain(settings.model_dump(exclude_none=True)))


def secrets_as_environment(settings: Settings) -> dict[str, str]:
    """The secrets that ``to_toml`` leaves out, as environment variables for a child process."""
    found: dict[str, str] = {}
    for name in Settings.model_fields:
        section = getattr(settings, name)
        if isinstance(section, SettingsSection):
            for key in type(section).model_fields:
                if isinstance(value := getattr(section, key), SecretStr):
                    found[f"{PREFIX}{name}__{key}".upper()] = value.get_secret_value()
    return found


def _toml(config: str | Path) -> dict[str, Any]:
    if str(config) in shipped():
        return tomllib.loads(resources.files("infra.settings").joinpath(f"configs/{config}.toml").read_text())
    path = Path(config)
    if not path.is_file():
        raise ConfigError(f"--config {config}: no such file, and not one of the shipped {', '.join(shipped())}")
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--config {config}: {error}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """TIDEMILL_SECTION__KEY variables as a tree. A variable that names no setting is an error; variables that Kubernetes adds are ignored."""
    tree: dict[str, Any] = {}
    for name, value in environment.items():
        if not name.upper().startswith(PREFIX) or name.upper() in NOT_SETTINGS or is_service_link(name, value):
            continue
        keys = name[len(PREFIX) :].lower().split("__")
        if keys[0] not in Settings.model_fields:
            raise ConfigError(f"environment variable {name} names no setting; sections are {', '.join(sorted(Settings.model_fields))}")
        _merge(tree, nested(keys, value))
    return tree


def nested(keys: Sequence[str], value: str) -> dict[str, Any]:
    """A tree with this one value, converted to the setting's type. Raises ConfigError."""
    tree: Any = values_of(Settings, keys, value)
    for key in reversed(keys):
        tree = {key: tree}
    return dict(tree)


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if not isinstance(v, SecretStr)}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (bool, int, float, str)) else str(value)
