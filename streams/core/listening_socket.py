"""Sockets that a part listens on, bound before anything slow begins."""

import socket

from streams.core.errors import ConfigError


def listening_socket(host: str, port: int, section: str) -> socket.socket:
    """Bound, and not yet listening; port 0 takes a free one. Raises ConfigError, which names ``section``'s settings."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(f"{section}.host:{section}.port = {host}:{port} cannot be listened on: {error.strerror}") from None
    return listening
