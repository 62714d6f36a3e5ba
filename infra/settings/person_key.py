"""The key of people's hashes: from the settings, from a file, or made in the run's folder."""

import os
import secrets
from collections.abc import MutableMapping
from pathlib import Path

from infra.settings.config import Settings
from streams.core.errors import ConfigError
from streams.core.person_ids import KEY_VARIABLE

KEY_FILE = "person.key"
LEAST_CHARACTERS = 16


def person_key_of(settings: Settings, make: bool = False) -> str | None:
    """The key; None where there is none. ``make``: make one in the run's folder then.

    Raises ConfigError where the file that the settings name cannot be read, or holds too short a key.
    """
    if settings.erasure.person_key is not None:
        return settings.erasure.person_key.get_secret_value()
    path = settings.erasure.person_key_file or settings.run_folder / KEY_FILE
    if make and settings.erasure.person_key_file is None and not path.exists():
        _write_new(path)
    try:
        key = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        if settings.erasure.person_key_file is None and isinstance(error, FileNotFoundError):
            return None
        raise ConfigError(f"erasure.person_key_file = {path} cannot be read: {error}") from None
    if len(key) < LEAST_CHARACTERS:
        raise ConfigError(f"erasure.person_key_file = {path} holds {len(key)} characters: {LEAST_CHARACTERS} or more make a key")
    return key


def adopt_person_key(settings: Settings, environment: MutableMapping[str, str] = os.environ) -> None:
    """Give this process the key, where there is one. Raises ConfigError."""
    if (key := person_key_of(settings)) is not None:
        environment[KEY_VARIABLE] = key


def _write_new(path: Path) -> None:
    """A new key, readable by its owner alone; the first of two writers wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    incoming = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    incoming.touch(mode=0o600)
    incoming.write_text(secrets.token_urlsafe(32) + "\n")
    try:
        os.link(incoming, path)
    except FileExistsError:
        pass
    finally:
        incoming.unlink()
