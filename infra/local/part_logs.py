"""What a process logs: JSON for a part of the ring, next to nothing for a command that shows progress."""

import contextlib
import logging
import os
import sys
from typing import TextIO, cast

import structlog


class Unfailing:
    """A stream whose full disk ends nobody: a line that cannot be written is a smaller loss than the process that wanted to say it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def log_json(part: str) -> None:
    """One JSON object a line on standard error, each with the part that says it."""

    def bound(_: object, __: str, told: structlog.typing.EventDict) -> structlog.typing.EventDict:
        told.setdefault("part", part)  # for every thread, which a context variable would not be
        return told

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            bound,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, Unfailing(sys.stderr))),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


def quiet() -> None:
    """Commands that show progress keep the clients' own chatter out of it."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(level=logging.ERROR)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
