"""Settings of erasures (``erasure.*``)."""

from pathlib import Path

from pydantic import Field, SecretStr

from streams.core.settings_section import SettingsSection


class ErasureSettings(SettingsSection):
    """How events name people who asked to be forgotten."""

    person_key: SecretStr | None = Field(default=None, min_length=16)
    """Secret key of people's hashes (16 characters or more, the same for every part of a ring), so that nobody can find out from the log whom an
    erasure means by hashing a list of addresses. None: from ``person_key_file``."""
    person_key_file: Path | None = None
    """File with the key. None: ``person.key`` in the run's folder, which ``up`` and ``demo`` make at the first start. Keep it: without it old
    erasures cannot be acted on."""
