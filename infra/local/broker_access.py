"""Access control of the embedded Kafka: TLS with its own certificate authority, a password for each part, and ACLs that deny by default.

Everything is created once, in one folder that only its owner can read. Broker and controller authenticate each other by certificate; all
clients log in by SCRAM over TLS. The superuser ``admin`` creates the topics and grants the parts their rights.
"""

import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from streams.core.errors import ConfigError
from streams.kafka import KafkaSettings

ADMIN, BROKER = "tidemill-admin", "tidemill-broker"
MECHANISM = "SCRAM-SHA-512"
VALID = timedelta(days=3650)


class BrokerAccess:
    """The secrets of one embedded broker, and the configuration that uses them."""

    def __init__(self, folder: Path, users: Sequence[str]) -> None:
        """In a new folder, ``users`` and ``ADMIN`` each get a password."""
        self._folder = folder.resolve()
        if not (self._folder / "users.json").exists():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_certificates()
            self._write("users.json", json.dumps({user: secrets.token_urlsafe(24) for user in (ADMIN, *users)}))
        self._passwords: dict[str, str] = json.loads((self._folder / "users.json").read_text())

    def login(self, user: str, servers: str) -> KafkaSettings:
        """Kafka settings with which this user logs in. Raises ConfigError for a user without a password."""
        if user not in self._passwords:
            raise ConfigError(f"the embedded Kafka has no user {user}; its users are {', '.join(self._passwords)}")
        return KafkaSettings.model_validate({
            "bootstrap_servers": servers, "security_protocol": "SASL_SSL", "sasl_mechanism": MECHANISM, "sasl_username": user,
            "sasl_password": self._passwords[user], "ssl_cafile": str(self._folder / "ca.pem"),
        })  # fmt: skip

    def properties(self, port: int, advertised: str, controller_port: int) -> dict[str, str]:
        """Broker properties that turn on TLS, SCRAM and ACLs."""
        return {
            "listeners": f"CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"CLIENTS://{advertised}",
            "inter.broker.listener.name": "CLIENTS",
            "listener.security.protocol.map": "CLIENTS:SASL_SSL,CONTROLLER:SSL",
            "listener.name.controller.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": MECHANISM,
            "sasl.mechanism.inter.broker.protocol": MECHANISM,
            f"listener.name.clients.{MECHANISM.lower()}.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required"
            f' username="{ADMIN}" password="{self._passwords[ADMIN]}";',
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._folder / "broker.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self._folder / "ca.pem"),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "false",
            "super.users": f"User:CN={BROKER};User:{ADMIN}",
        }

    def format_arguments(self) -> list[str]:
        """Arguments for Kafka's storage tool: every password, so that clients can log in from the first start."""
        users = self._passwords.items()
        return [word for user, password in users for word in ("--add-scram", f"{MECHANISM}=[name={user},password={password}]")]

    def _make_certificates(self) -> None:
        """Create a certificate authority, whose key is not kept, and the broker's certificate."""
        authority_key, key, now = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        issuer = _name("tidemill-authority")
        made = _certificate(issuer, issuer, authority_key.public_key(), now)
        authority = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(authority_key, hashes.SHA256())
        named = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
        ours = _certificate(_name(BROKER), issuer, key.public_key(), now).add_extension(named, critical=False).sign(authority_key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self._write("ca.pem", authority.public_bytes(pem).decode())
        self._write("broker.pem", (private + ours.public_bytes(pem) + authority.public_bytes(pem)).decode())

    def _write(self, name: str, text: str) -> None:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_text(text)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key).serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + VALID)
