"""Log output: JSON for a part of the ring, warnings only for a command that shows progress."""

import contextlib
import logging
import os
import sys
from typing import TextIO, cast

import structlog


class Unfailing:
    """A stream that ignores write errors: when the disk is full, lines are lost and the process goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def log_json(part: str) -> None:
    """Log one JSON object per line to standard error, each with the name of the part."""

    def bound(_: object, __: str, told: structlog.typing.EventDict) -> structlog.typing.EventDict:
        told.setdefault("part", part)  # for every thread; a context variable would hold in one only
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
    """For commands that show progress: silence the log output of libraries."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(level=logging.ERROR)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
