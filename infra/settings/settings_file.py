"""The commented settings file that ``tidemill init`` writes. Comments are the settings' own sentences."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w

from infra.settings.config import Settings, load
from infra.settings.setting_path import field_at


@dataclass(frozen=True)
class InitQuestion:
    """A setting that ``init`` asks for."""

    key: str
    option: str
    """Name of the command's parameter that answers it."""
    text: str
    default: Any


QUESTIONS = (
    InitQuestion("run_folder", "run_folder", "Folder for everything that the ring stores", "runs/up"),
    InitQuestion("policy.base", "base", "Model: smollm2 (a small one, made on first use), tiny (for tests), or a folder", "smollm2"),
    InitQuestion("actor.port", "port", "Port of the OpenAI API", 8000),
    InitQuestion("kafka.bootstrap_servers", "kafka", "Your own Kafka as host:port,… (empty: one is started with the ring)", ""),
    InitQuestion(
        "promotion.mode", "promotion", "How an adapter comes to answer: newest (each once attested) or gated (at night, on evidence)", "newest"
    ),
    InitQuestion("metrics_port", "metrics_port", "First port of the parts' metrics (0: free ones)", 9100),
)
SUGGESTED = (
    "metrics_host", "actor.host", "actor.keys_file", "kafka.security_protocol", "lake.keep_days", "reward.min_labels", "reward.min_each_verdict",
    "learner.rank", "learner.prompts_needed", "learner.step_minutes", "promotion.cron", "promotion.time_zone", "console.port",
)  # fmt: skip
"""Further settings, which the file names in comments with their defaults."""
HEAD = """# Settings of a Tidemill ring. Every tidemill command finds this file in its working folder or above.
# All settings: docs/reference/settings.md. One of them: tidemill config explain KEY
"""


def commented(answers: Mapping[str, Any]) -> str:
    """The file's text; an empty answer leaves the setting out. Raises ConfigError when the answers are no valid settings."""
    given = {key: value for key, value in answers.items() if value != ""}
    load(None, [f"{key}={value}" for key, value in given.items()], {})
    sections: dict[str, list[str]] = {}
    for key in (*answers, *SUGGESTED):
        section, _, name = key.rpartition(".")
        field = field_at(Settings, key)
        assert field is not None, key
        value = given.get(key, field.get_default(call_default_factory=True))
        line = f"{name} = …" if value is None else tomli_w.dumps({name: value}).strip()
        sections.setdefault(section, []).append(f"{_comment(field.description)}\n{line if key in given else f'# {line}'}\n")
    plain = "\n".join(sections.pop(""))
    return "\n".join([HEAD, plain, *(f"[{section}]\n" + "\n".join(rows) for section, rows in sections.items())])


def _comment(description: str | None) -> str:
    """The description's first sentence."""
    first = re.split(r"(?<=\.)\s", " ".join((description or "").split()), maxsplit=1)[0]
    return f"# {first.replace('``', '`')}"
