"""``tidemill logs``: the log lines of a run's parts, in order of time, and those that come."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streams.core.errors import ConfigError

KAFKA = "kafka"
FIELDS = ("event", "level", "part", "timestamp")
"""Fields of a line that have a place of their own."""
TAIL_BYTES = 4 << 20
"""Only so much of the end of a log is read back."""


@dataclass(frozen=True)
class LogLine:
    """One line of a part's log."""

    part: str
    at: datetime | None
    """None for a line that is not one of ours, such as one of vLLM's or of a traceback: it belongs to the line before."""
    raw: str
    told: Mapping[str, Any]

    @classmethod
    def read(cls, part: str, raw: str) -> "LogLine":
        """A line of text, JSON or not."""
        try:
            told = json.loads(raw)
            return cls(part, datetime.fromisoformat(told["timestamp"]).astimezone(UTC), raw, told)
        except (ValueError, KeyError, TypeError):
            return cls(part, None, raw, {})

    def as_json(self) -> str:
        """The line as it is in the log, or one like it."""
        return self.raw if self.told else json.dumps({"part": self.part, "line": self.raw})

    def as_text(self) -> str:
        """For a terminal."""
        if self.at is None:
            return f"{'':<9}{self.part:<9} {self.raw}"
        rest = " ".join(f"{key}={value}" for key, value in self.told.items() if key not in FIELDS)
        level = f"{self.told.get('level', '')}: " if self.told.get("level") in ("warning", "error", "critical") else ""
        return f"{self.at:%H:%M:%S} {self.part:<9} {level}{self.told.get('event', '')} {rest}".rstrip()


class PartLogs:
    """The logs of a run's parts."""

    def __init__(self, run_folder: Path, parts: Sequence[str] = ()) -> None:
        """``parts``: names; empty: all that have a log. Raises ConfigError for one without a log."""
        known = {path.stem: path for path in sorted((run_folder / "logs").glob("*.log"))}
        if (kafka := run_folder / "broker" / "kafka.log").exists():
            known[KAFKA] = kafka
        if unknown := [part for part in parts if part not in known]:
            raise ConfigError(f"{unknown[0]} has no log in {run_folder}; there are {', '.join(known) or 'none: has it been started?'}")
        self._logs = {part: known[part] for part in (parts or [name for name in known if name != KAFKA])}
        self._read_to = dict.fromkeys(self._logs, 0)
        self._rest = dict.fromkeys(self._logs, b"")

    def last(self, count: int, since: datetime | None = None, until: datetime | None = None) -> list[LogLine]:
        """The last ``count`` lines of all parts together, in order of time, within these times."""
        found = [(at, number, line) for lines in map(self._tail, self._logs) for number, (at, line) in enumerate(_dated(lines))]
        found.sort(key=lambda each: (each[0], each[2].part, each[1]))
        within = [line for at, _, line in found if (since is None or at >= since) and (until is None or at < until)]
        return within[-count:] if count else within

    def new(self) -> list[LogLine]:
        """Lines written since the last look, in order of time."""
        found = [(at, number, line) for lines in map(self._more, self._logs) for number, (at, line) in enumerate(_dated(lines))]
        return [line for _, _, line in sorted(found, key=lambda each: (each[0], each[2].part, each[1]))]

    def follow(self, show: Callable[[LogLine], None], stopped: Callable[[float], bool], every_s: float = 0.5) -> None:
        """Show new lines until ``stopped``, which waits for so many seconds, says so."""
        while not stopped(every_s):
            for line in self.new():
                show(line)

    def _tail(self, part: str) -> list[LogLine]:
        size = self._logs[part].stat().st_size
        self._read_to[part] = max(0, size - TAIL_BYTES)
        lines = self._more(part)
        return lines[1:] if size > TAIL_BYTES else lines  # the first one began earlier

    def _more(self, part: str) -> list[LogLine]:
        path = self._logs[part]
        if path.stat().st_size < self._read_to[part]:  # it was replaced
            self._read_to[part], self._rest[part] = 0, b""
        with path.open("rb") as stream:
            stream.seek(self._read_to[part])
            data = self._rest[part] + stream.read()
            self._read_to[part] = stream.tell()
        *whole, self._rest[part] = data.split(b"\n")
        return [LogLine.read(part, line.decode(errors="replace")) for line in whole]


def _dated(lines: Sequence[LogLine]) -> Iterator[tuple[datetime, LogLine]]:
    """Each line of one log with its time; a line without one has that of the line before."""
    at = datetime.min.replace(tzinfo=UTC)
    for line in lines:
        at = line.at or at
        yield at, line
