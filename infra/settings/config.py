"""One frozen tree of settings for the whole ring: defaults < TOML < environment (``TIDEMILL_ACTOR__PORT``) < flags (``--set actor.port=…``)."""

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
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
from infra.settings.setting_path import meant
from infra.settings.text_values import is_service_link, rebased, values_of
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
    """First of seven ports for ``/metrics``, ``/healthz`` and ``/readyz``: streams, reward, learner, promoter, critic, otlp, and the
    learner's Ray, in this order. 0: free ones. The actor serves them on its own port."""
    metrics_host: str = Field(default="127.0.0.1", min_length=1, max_length=253)
    """Address on which they listen. ``0.0.0.0`` for a container or a Prometheus elsewhere: nothing asks for a key there, so keep it off the internet.
    Ray's port is not bound by it."""
    refuse_too_large: bool = True
    """Refuse to start a ring that by arithmetic does not fit into memory (infra/planner/ring_memory.py). False: try it."""
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


def load(
    config: str | Path | None = None, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None, paths_from: Path | None = None
) -> Settings:
    """The resolved settings. ``config``: a file, or a shipped configuration (demo, laptop, gpu); ``overrides`` are ``section.key=value``.
    ``paths_from``: the folder from which relative paths in ``config`` count, ``run_folder`` included; None: the working folder.

    Raises ConfigError that names the key, the problem, and where to fix it.
    """
    tree: dict[str, Any] = {}
    for _, layer in layers(config, overrides, environment, paths_from):
        _merge(tree, layer)
    return _resolved(tree, config)


def layers(
    config: str | Path | None, overrides: Sequence[str], environment: Mapping[str, str] | None = None, paths_from: Path | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sources of ``load``, each a name and a tree, weakest first. Raises ConfigError."""
    if config is not None:
        found = _toml(config)
        default = {"run_folder": str(Settings.model_fields["run_folder"].default)}
        yield str(config), found if paths_from is None else rebased(Settings, default | found, paths_from)
    yield from _from_environment(os.environ if environment is None else environment)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override!r}: write section.key=value")
        yield f"--set {key}", nested(key.split("."), value)


def load_over(config: Path, settings: Settings) -> Settings:
    """The settings in ``config``, overridden by those that were given explicitly in ``settings`` (flag, variable or file). Raises ConfigError."""
    tree = _toml(config)
    _merge(tree, settings.model_dump(exclude_unset=True, exclude_none=True))
    return _resolved(tree, config)


def _resolved(tree: dict[str, Any], config: str | Path | None) -> Settings:
    try:
        return Settings(**tree)
    except ValidationError as error:
        problems = "; ".join(_told(problem) for problem in error.errors(include_input=False, include_url=False))
        raise ConfigError(f"settings{f' ({config})' if config else ''}: {problems}") from None


def _told(problem: Mapping[str, Any]) -> str:
    """One problem that pydantic found; for a key that is not a setting, with what it may have meant."""
    path = ".".join(map(str, problem["loc"]))
    return f"{path}: {problem['msg']}{meant(Settings, path) if problem['type'] == 'extra_forbidden' else ''}"


def shipped() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(f.name.removesuffix(".toml") for f in resources.files("infra.settings").joinpath("configs").iterdir() if f.name.endswith(".toml"))


def to_toml(settings: Settings) -> str:
    """The settings as TOML, without unset keys and without secrets."""
    return tomli_w.dumps(_plain(settings.model_dump(exclude_none=True)))


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that set no setting. For a child process that gets all settings in a file: variables would override the file, and with it
    the flags of the command line."""
    return {name: value for name, value in environment.items() if not _is_setting(name, value)}


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
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a byte order mark
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {config}: {error}") from None


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """TIDEMILL_SECTION__KEY variables as trees. A variable that names no setting is an error; variables that Kubernetes adds are ignored."""
    for name, value in environment.items():
        if not _is_setting(name, value):
            continue
        keys = name[len(PREFIX) :].lower().split("__")
        if keys[0] not in Settings.model_fields:
            near = meant(Settings, ".".join(keys))
            raise ConfigError(f"environment variable {name} names no setting{near}; sections are {', '.join(sorted(Settings.model_fields))}")
        yield f"variable {name}", nested(keys, value)


def _is_setting(name: str, value: str) -> bool:
    """True for a variable that sets a setting, or tries to."""
    return name.upper().startswith(PREFIX) and name.upper() not in NOT_SETTINGS and not is_service_link(name, value)


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
