"""``tidemill config explain``: one setting with its value, where that comes from, its default and its bounds."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from infra.settings.config import PREFIX, Settings
from infra.settings.run_choice import RunChoice
from infra.settings.setting_path import field_at, meant, paths_in
from infra.settings.text_values import parts_of, section_of, words_of
from streams.core.errors import ConfigError


@dataclass(frozen=True)
class SettingExplained:
    """What there is to know about a setting."""

    key: str
    sentence: str
    value: Any
    source: str
    """Where the value comes from: a flag, a variable, a file, or the default."""
    default: Any
    bounds: tuple[str, ...]
    variable: str
    """The environment variable that sets it."""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {name: value if isinstance(value, (bool, int, float, str, list, tuple, dict)) else None if value is None else str(value)
                for name, value in asdict(self).items()}  # fmt: skip

    def __str__(self) -> str:
        """For a terminal."""
        rows = {"value": f"{_shown(self.value)}   ({self.source})", "default": _shown(self.default), "bounds": ", ".join(self.bounds),
                "flag": f"--set {self.key}=…", "variable": self.variable}  # fmt: skip
        return "\n".join([self.key, f"  {self.sentence}", *(f"  {name:<10}{told}" for name, told in rows.items() if told)])


def explained(key: str, choice: RunChoice) -> SettingExplained:
    """Raises ConfigError for a key that is not a setting, with what it may have meant; for a section, with its keys."""
    field = field_at(Settings, key)
    if field is None:
        raise ConfigError(f"{key} is not a setting{meant(Settings, key)}")
    if (section := section_of(field.annotation)) is not None:
        raise ConfigError(f"{key} is a section; its settings are {', '.join(f'{key}.{name}' for name in paths_in(section))}")
    value = reduce(getattr, key.split("."), choice.load("laptop"))
    default = field.get_default(call_default_factory=True)
    sentence = " ".join((field.description or "").split()).replace("``", "`")
    shown = "(secret)" if isinstance(value, SecretStr) else value
    return SettingExplained(
        key, sentence, shown, choice.source_of(key, "laptop"), default, tuple(_bounds(field)), f"{PREFIX}{key.replace('.', '__')}".upper()
    )


def _bounds(field: FieldInfo) -> Iterator[str]:
    if words := words_of(field.annotation):
        yield f"one of {', '.join(map(str, words))}" + (" or a path" if Path in parts_of(field.annotation) else "")
    for part in field.metadata:
        for name, sign in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
            if (limit := getattr(part, name, None)) is not None:
                yield f"{sign} {limit}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)
