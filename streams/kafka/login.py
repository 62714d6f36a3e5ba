"""Finds out whether Kafka refused our login. The client retries a refused login until its timeout and then reports Kafka as unavailable."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka.errors import NoError, for_code
from kafka.net.sasl import get_sasl_mechanism
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest

from streams.core.errors import Unavailable
from streams.kafka.client_errors import translated_errors
from streams.kafka.kafka_settings import KafkaSettings

PATIENCE_S = 10.0
"""A server that takes longer than this to answer a login counts as unavailable."""


@contextmanager
def connecting(settings: KafkaSettings) -> Iterator[None]:
    """Wraps the creation of a client. Raises ConfigError when Kafka refuses the login, Unavailable when no server answers."""
    try:
        with translated_errors("connect to", settings):
            yield
    except Unavailable:
        if settings.security_protocol.startswith("SASL"):
            with translated_errors("connect to", settings):
                _log_in_anywhere(settings)
        raise


def _log_in_anywhere(settings: KafkaSettings) -> None:
    """Log in to the first server that answers. Raises the client's error when it refuses."""
    for server in settings.servers:
        try:
            with _connection(server, settings) as connection:
                _log_in(connection, settings)
        except OSError:
            continue  # this server is unavailable, as the client reported
        return


def _connection(server: str, settings: KafkaSettings) -> socket.socket:
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    plain = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    context = settings.tls_context()
    return context.wrap_socket(plain, server_hostname=host) if context else plain


def _log_in(connection: socket.socket, settings: KafkaSettings) -> None:
    options = settings.client_options()
    mechanism = get_sasl_mechanism(settings.sasl_mechanism)(host=connection.getpeername()[0], **options)
    protocol = KafkaProtocol(client_id="tidemill-login")
    _answer(connection, protocol, SaslHandshakeRequest(mechanism=settings.sasl_mechanism, version=1))
    while not mechanism.is_done():
        mechanism.receive(_answer(connection, protocol, SaslAuthenticateRequest(auth_bytes=mechanism.auth_bytes(), version=0)).auth_bytes)


def _answer(connection: socket.socket, protocol: KafkaProtocol, request: Any) -> Any:
    """Kafka's answer to one request. Raises the client's error when the answer is one, OSError when there is no answer."""
    protocol.send_request(request)
    connection.sendall(protocol.send_bytes())
    while received := connection.recv(4096):
        for _, response in protocol.receive_bytes(received):
            if (error := for_code(response.error_code)) is not NoError:
                raise error(response)
            return response
    raise ConnectionError("the server closed the connection without an answer")
