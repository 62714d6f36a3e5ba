"""The client's errors, as ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from kafka.errors import KafkaError, MessageSizeTooLargeError

from streams.errors import Unavailable


@contextmanager
def as_ours(verb: str) -> Iterator[None]:
    """Turns the client's errors into Unavailable; sizes are the caller's to handle."""
    try:
        yield
    except MessageSizeTooLargeError:
        raise
    except KafkaError as error:
        raise ours(verb, error) from error


def ours(verb: str, error: KafkaError) -> Unavailable:
    """The error to raise for one of the client's; ``verb`` says what could not be done to Kafka."""
    return Unavailable(f"cannot {verb} Kafka: {type(error).__name__}: {error}")
