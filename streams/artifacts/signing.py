"""Signatures on artifacts: they prove who made an adapter or a reward model. The checksum alone proves only that it is complete.

Ed25519 (RFC 8032) over the artifact's path and its manifest's SHA-256, so that a signature is valid for these bytes under this name and for
nothing else. An attacker who can write to the artifact store and to the topics, but has no trusted key, cannot get anything loaded.
"""

import base64
import binascii
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from streams.artifacts.signing_settings import SigningSettings, decode_key
from streams.core.errors import BadArtifact

CONTEXT = b"tidemill artifact v1"
"""Prefix of every signed message (domain separation): a signature made for another purpose with the same key is not valid here."""


class Signature(BaseModel):
    """The file beside an artifact's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Public key, base64."""
    signature: str
    """Base64."""


class Signing:
    """Signs when there is a private key, and verifies when there are trusted keys."""

    def __init__(self, settings: SigningSettings | None = None) -> None:
        settings = settings or SigningSettings()
        secret = settings.private_key
        self._private = None if secret is None else Ed25519PrivateKey.from_private_bytes(decode_key(secret.get_secret_value()))
        self._trusted = {key: Ed25519PublicKey.from_public_bytes(decode_key(key)) for key in settings.trusted_keys}

    def sign(self, path: str, manifest_sha256: str) -> bytes | None:
        """The signature's file, or None without a private key."""
        if self._private is None:
            return None
        public = base64.b64encode(self._private.public_key().public_bytes_raw()).decode()
        signature = base64.b64encode(self._private.sign(_message(path, manifest_sha256))).decode()
        return Signature(key=public, signature=signature).model_dump_json().encode()

    @property
    def demands(self) -> bool:
        """True when only signed artifacts are accepted."""
        return bool(self._trusted)

    def verify(self, path: str, manifest_sha256: str, file: bytes | None) -> None:
        """Raises BadArtifact unless a trusted key signed this manifest under this path; does nothing when no keys are trusted."""
        if not self.demands:
            return
        if file is None:
            raise BadArtifact(f"artifact {path} is not signed, and signing.trusted_keys requires a signature")
        try:
            found = Signature.model_validate_json(file)
            signature = base64.b64decode(found.signature, validate=True)
        except (ValidationError, binascii.Error):
            raise BadArtifact(f"artifact {path} has a signature that cannot be read") from None
        if (key := self._trusted.get(found.key)) is None:
            raise BadArtifact(f"artifact {path} is signed by a key that signing.trusted_keys does not name")
        try:
            key.verify(signature, _message(path, manifest_sha256))
        except InvalidSignature:
            raise BadArtifact(f"artifact {path}: the signature does not match these bytes under this name") from None


class KeyPair(BaseModel):
    """A new pair of keys, base64."""

    model_config = ConfigDict(frozen=True)

    private_key: SecretStr
    public_key: str

    @classmethod
    def generate(cls) -> Self:
        """A pair from the operating system's random source."""
        private = Ed25519PrivateKey.generate()
        return cls(
            private_key=SecretStr(base64.b64encode(private.private_bytes_raw()).decode()),
            public_key=base64.b64encode(private.public_key().public_bytes_raw()).decode(),
        )


def _message(path: str, manifest_sha256: str) -> bytes:
    return b"\n".join((CONTEXT, path.encode(), manifest_sha256.encode()))
