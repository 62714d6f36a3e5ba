"""Translates the Kafka client's errors into Tidemill's."""

from collections.abc import Iterator
from contextlib import contextmanager

from kafka.errors import (
    AuthorizationError,
    ClusterAuthorizationFailedError,
    KafkaError,
    MessageSizeTooLargeError,
    SaslAuthenticationFailedError,
    UnsupportedCodecError,
    UnsupportedSaslMechanismError,
)

from streams.core.errors import ConfigError, Unavailable
from streams.kafka.kafka_settings import KafkaSettings


@contextmanager
def translated_errors(verb: str, settings: KafkaSettings, what: str = "") -> Iterator[None]:
    """Raises the client's errors as ConfigError (login refused, no right, a codec that is not installed) or Unavailable. Errors about sizes pass."""
    try:
        yield
    except MessageSizeTooLargeError:
        raise
    except KafkaError as error:
        raise translate_error(verb, error, settings, what) from error


def translate_error(verb: str, error: KafkaError, settings: KafkaSettings, what: str = "") -> Unavailable | ConfigError:
    """Tidemill's error for one of the client's. ``verb`` says what failed ("write to"), ``what`` on which topic or group."""
    if type(error) is KafkaError and ClusterAuthorizationFailedError.__name__ in str(error):
        error = ClusterAuthorizationFailedError()  # a producer without any right gets this at its start, and the client passes it on as text only
    if isinstance(error, AuthorizationError):
        named = what or ", ".join(sorted(str(name) for name in _flat(error.args)))
        return ConfigError(
            f"{settings.principal} may not {verb} Kafka{f' ({named})' if named else ''}: {type(error).__name__}."
            " `tidemill topics --acls` gives the rights"
        )
    if isinstance(error, SaslAuthenticationFailedError | UnsupportedSaslMechanismError):
        return ConfigError(
            f"Kafka refused the login of {settings.principal}: {type(error).__name__}."
            " See kafka.sasl_username, kafka.sasl_password and kafka.sasl_mechanism"
        )
    if isinstance(error, UnsupportedCodecError):  # waiting does not help
        return ConfigError(
            f"cannot {verb} Kafka{f' ({what})' if what else ''}: {error}. The codecs are the packages lz4, python-snappy and zstandard"
        )
    return Unavailable(f"cannot {verb} Kafka: {type(error).__name__}: {error}")


def _flat(values: object) -> list[object]:
    if isinstance(values, (tuple, list, set, frozenset)):
        return [each for value in values for each in _flat(value)]
    return [values]
