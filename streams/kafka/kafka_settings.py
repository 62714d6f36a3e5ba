"""Settings of the connection to Kafka (``kafka.*``), which every part shares."""

import ssl
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from streams.core.errors import ConfigError
from streams.core.settings_section import SettingsSection


class KafkaSettings(SettingsSection):
    """The Kafka cluster: address, login, topics, timeouts."""

    bootstrap_servers: str | None = None
    """``host:port``, several separated by commas. None: ``tidemill demo`` and ``tidemill up`` start an embedded Apache Kafka."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Encryption and login: SSL encrypts, SASL logs in."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """How to log in, for protocols with SASL."""
    sasl_username: str | None = None
    """User name for SASL."""
    sasl_password: SecretStr | None = None
    """Password for SASL. Best given as TIDEMILL_KAFKA__SASL_PASSWORD. Never printed, logged or written to a file."""
    ssl_cafile: str | None = None
    """PEM file of the certificate authority to trust."""
    ssl_certfile: str | None = None
    """PEM file of the client's certificate, where the cluster requires one."""
    ssl_keyfile: str | None = None
    """PEM file of the client's private key."""
    partitions: int = Field(default=4, ge=1, le=1000)
    """Partitions of episodes, feedback and labels. The three must have the same number: the join reads them side by side."""
    replication: int = Field(default=1, ge=1, le=9)
    """Replicas of every record."""
    session_timeout_s: float = Field(default=10.0, ge=6, le=300)
    """A consumer that is silent for this long loses its partitions."""
    request_timeout_s: float = Field(default=30.0, gt=0, le=600)
    """A request without an answer for this long has failed; Kafka then counts as unavailable."""
    delivery_timeout_s: float = Field(default=120.0, gt=0, le=3600)
    """A record without an acknowledgement for this long has failed."""
    compression: Literal["gzip"] | None = None
    """Compression of what is sent. It is the sender's largest cost, so it pays only where the network is slow or the disks are small."""
    max_message_bytes: int = Field(default=4 << 20, ge=1024, le=1 << 30)
    """Largest event. A larger one is refused before it is sent."""

    @model_validator(mode="after")
    def _sasl_is_complete(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (self.sasl_mechanism and self.sasl_username and self.sasl_password):
            raise ValueError(f"kafka.security_protocol = {self.security_protocol} needs sasl_mechanism, sasl_username and sasl_password")
        return self

    @property
    def servers(self) -> list[str]:
        """The addresses, or ConfigError when none is set."""
        if not self.bootstrap_servers:
            raise ConfigError("kafka.bootstrap_servers is not set: name a cluster, or start one with `tidemill broker`")
        return [server.strip() for server in self.bootstrap_servers.split(",")]

    @property
    def principal(self) -> str:
        """The principal that logs in, in words."""
        return self.sasl_username or ("the owner of kafka.ssl_certfile" if self.ssl_certfile else "a client without login")

    def tls_context(self) -> ssl.SSLContext | None:
        """TLS as set, for clients other than kafka-python; none for a plain connection. Raises ConfigError when a file cannot be read."""
        if not self.security_protocol.endswith("SSL"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ssl_cafile)
            if self.ssl_certfile:
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
        except OSError as error:
            raise ConfigError(f"kafka.ssl_cafile, ssl_certfile or ssl_keyfile cannot be read: {error}") from None
        return context

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments that every kafka-python client takes."""
        return {
            "bootstrap_servers": self.servers,
            "security_protocol": self.security_protocol,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self.sasl_password.get_secret_value() if self.sasl_password else None,
            "ssl_cafile": self.ssl_cafile,
            "ssl_certfile": self.ssl_certfile,
            "ssl_keyfile": self.ssl_keyfile,
            "request_timeout_ms": int(self.request_timeout_s * 1000),
            "bootstrap_timeout_ms": int(self.request_timeout_s * 1000),
        }
