"""Settings of signatures on artifacts."""

import base64
import binascii
from typing import Annotated

from pydantic import AfterValidator, SecretStr

from streams.core.settings_section import SettingsSection

KEY_BYTES = 32


def decode_key(text: str) -> bytes:
    """The bytes of an Ed25519 key in base64. Raises ValueError for anything else."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise ValueError(f"an Ed25519 key is {KEY_BYTES} bytes in base64; `tidemill keys signing` makes a pair")
    return raw


def _public_key(text: str) -> str:
    decode_key(text)
    return text


def _private_key(secret: SecretStr) -> SecretStr:
    decode_key(secret.get_secret_value())
    return secret


class SigningSettings(SettingsSection):
    """Signatures on adapters and reward models: the key that signs, and the keys that are trusted."""

    private_key: Annotated[SecretStr, AfterValidator(_private_key)] | None = None
    """Key that signs what this part publishes (Ed25519, base64). Best given as TIDEMILL_SIGNING__PRIVATE_KEY. Never printed, logged or written to a
    file."""
    trusted_keys: tuple[Annotated[str, AfterValidator(_public_key)], ...] = ()
    """Public keys (base64) whose signatures are accepted. When there are any, an artifact without a signature by one of them is refused. Empty: only
    checksums are checked."""
