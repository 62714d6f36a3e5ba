"""Signatures on artifacts: who made an adapter or a reward model, on top of the checksum that says it is whole.

Ed25519 (RFC 8032) over the artifact's path and its manifest's SHA-256, so that a signature vouches for these bytes under this name and
for nothing else. Whoever can write to the artifact store and to the topics, but holds no trusted key, gets nothing loaded.
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
"""Begins whatever is signed, so that a key used elsewhere cannot be made to sign for us."""


class Signature(BaseModel):
    """The file beside an artifact's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Public key, base64."""
    signature: str
    """Base64."""


class Signing:
    """Signs and verifies, as far as keys are there."""

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
        """True when an artifact must be signed to be taken."""
        return bool(self._trusted)

    def verify(self, path: str, manifest_sha256: str, file: bytes | None) -> None:
        """Raises BadArtifact unless a trusted key signed this manifest under this path; does nothing when no keys are trusted."""
        if not self.demands:
            return
        if file is None:
            raise BadArtifact(f"artifact {path} is not signed, and signing.trusted_keys asks for it")
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
            raise BadArtifact(f"artifact {path}: the signature is not of these bytes under this name") from None


class KeyPair(BaseModel):
    """A new pair, base64."""

    model_config = ConfigDict(frozen=True)

    private_key: SecretStr
    public_key: str

    @classmethod
    def generate(cls) -> Self:
        """From the operating system's randomness."""
        private = Ed25519PrivateKey.generate()
        return cls(
            private_key=SecretStr(base64.b64encode(private.private_bytes_raw()).decode()),
            public_key=base64.b64encode(private.public_key().public_bytes_raw()).decode(),
        )


def _message(path: str, manifest_sha256: str) -> bytes:
    return b"\n".join((CONTEXT, path.encode(), manifest_sha256.encode()))
