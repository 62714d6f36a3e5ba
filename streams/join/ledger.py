"""The ledger: published = joined + pending + expired + dead-lettered + erased, for episodes and feedback, and the ids of what is missing.

It trusts no part's own counts: it reads the topics themselves and finds out for every record where it is now.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

from streams.core.errors import InvalidEvent
from streams.core.events import Feedback
from streams.core.metrics import Metrics
from streams.core.topics import DEAD_LETTERS, EPISODES, ERASURES, FEEDBACK, LABELS
from streams.erasure.erasure_follower import read_erasures
from streams.erasure.forgotten_people import Forgotten
from streams.join.join_session import GROUP
from streams.join.sqlite_state import EPOCH
from streams.kafka import KafkaSettings, Record, committed_offsets, end_offsets, read_to_end

SHOWN = 20  # missing ids in the text; all of them are in ``missing``
Where = tuple[str, int, int]


@dataclass(frozen=True)
class Row:
    """Where the records of one topic are now. Each record is counted in exactly one column."""

    topic: str
    published: int
    joined: int
    """Episodes: folded. Feedback: named by the newest label of its episode."""
    pending: int
    """Not yet read by the join, or (feedback) waiting for its episode."""
    expired: int
    dead_lettered: int
    duplicates: int
    missing: tuple[str, ...]
    """The join has read past these and they are nowhere: ids, or topic/partition/offset where a record has no id."""
    erased: int = 0
    """Of people who asked to be erased, or about an answer to one of them."""

    @property
    def balanced(self) -> bool:
        """True when every record is accounted for."""
        return not self.missing and self.published == self.joined + self.pending + self.expired + self.dead_lettered + self.duplicates + self.erased


@dataclass(frozen=True)
class Ledger:
    """The rows of episodes and feedback."""

    rows: tuple[Row, ...]

    @property
    def balanced(self) -> bool:
        """True when nothing is missing anywhere."""
        return all(row.balanced for row in self.rows)

    @property
    def missing(self) -> tuple[str, ...]:
        """Records that are not accounted for, over all rows."""
        return tuple(name for row in self.rows for name in row.missing)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the rows with every missing id."""
        return {"balanced": self.balanced, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        """One line for each topic, then the first missing ids."""
        lines = []
        for row in self.rows:
            line = f"{row.topic.split('.')[1]:<9}{row.published} published = {row.joined} joined + {row.pending} pending + {row.expired} expired"
            line += f" + {row.dead_lettered} dead-lettered" + (f" + {row.duplicates} duplicates" if row.duplicates else "")
            line += f" + {row.erased} erased" if row.erased else ""
            lines.append(line + (f" + {len(row.missing)} MISSING" if row.missing else ""))
        shown = self.missing[:SHOWN]
        lines += [f"missing: {name}" for name in shown]
        return "\n".join(lines + ([f"and {len(self.missing) - SHOWN} more"] if len(self.missing) > SHOWN else []))


class LedgerEntry(NamedTuple):
    """One record: its place, its arrival time, and its identity (episode_id, feedback_id or empty), None when it cannot be decoded.

    ``erased``: its person has asked to be erased since.
    """

    partition: int
    offset: int
    arrived_ms: int
    identity: tuple[str, str] | None
    erased: bool = False

    @property
    def episode_id(self) -> str:
        return self.identity[0] if self.identity else ""

    @property
    def feedback_id(self) -> str:
        return self.identity[1] if self.identity else ""


def read_ledger(settings: KafkaSettings, since: datetime | None = None, until: datetime | None = None, read_from: datetime | None = None) -> Ledger:
    """The ledger as of now, of records that arrived from ``since`` (included) to ``until`` (not included). Raises Unavailable.

    ``read_from``: earlier records are not even read. Their effects on later ones are then unknown, which hides a loss at most: feedback on an
    earlier episode counts as pending, and labels and dead letters of later records are later themselves.

    Causes are read before their effects, so that the ledger balances at any moment: everything before the join's offsets has its label in what is
    read after them.
    """
    metrics, forgotten = Metrics(), Forgotten()
    erasures = end_offsets(settings, ERASURES, metrics)
    read_erasures(read_to_end(settings, ERASURES, "ledger", metrics), forgotten)
    feedback = list(ledger_entries(read_to_end(settings, FEEDBACK, "ledger", metrics, read_from), forgotten))
    episodes = list(ledger_entries(read_to_end(settings, EPISODES, "ledger", metrics, read_from), forgotten))
    passed = committed_offsets(settings, GROUP)
    labels = read_to_end(settings, LABELS, "ledger", metrics, read_from)
    letters = read_to_end(settings, DEAD_LETTERS, "ledger", metrics, read_from)
    ledger = balance(episodes, feedback, labels, letters, passed, since, until)
    if end_offsets(settings, ERASURES, metrics) != erasures:  # a new erasure deleted labels while we read: start again
        return read_ledger(settings, since, until, read_from)
    return ledger


def balance(
    episodes: Iterable[LedgerEntry],
    feedback: Iterable[LedgerEntry],
    labels: Iterable[Record],
    letters: Iterable[Record],
    passed: Mapping[tuple[str, int], int],
    since: datetime | None = None,
    until: datetime | None = None,
) -> Ledger:
    """The ledger of these records. ``passed`` is the join's next offset by (topic, partition)."""
    reasons, named, span = _reasons(letters), _named(labels), _ArrivalSpan(since, until)
    known: set[str] = set()
    erased: set[str] = set()
    episodes_column = _Column(EPISODES.name)
    for entry in episodes:
        is_passed = entry.offset < passed.get((EPISODES.name, entry.partition), 0)
        place = "pending" if not is_passed else "missing" if entry.identity is None else "duplicates" if entry.episode_id in known else "joined"
        if entry.erased:
            erased.add(entry.episode_id)
            place = "erased" if is_passed else "pending"
        elif is_passed and entry.identity is not None:
            known.add(entry.episode_id)
        episodes_column.count(_dead_letter_place(reasons, EPISODES.name, entry) or place, entry, span)
    feedback_column = _Column(FEEDBACK.name)
    seen: set[tuple[str, str]] = set()
    for entry in feedback:
        is_passed = entry.offset < passed.get((FEEDBACK.name, entry.partition), 0)
        aside = _dead_letter_place(reasons, FEEDBACK.name, entry)
        if entry.identity is not None and is_passed and (entry.erased or entry.episode_id in erased):
            place = aside or "erased"
        elif entry.identity is None:
            place = aside or ("missing" if is_passed else "pending")
        elif entry.identity in seen:
            place = aside or "duplicates"
        elif entry.feedback_id in named.get(entry.episode_id, ()):
            place = "joined"
        else:
            place = aside or ("missing" if is_passed and entry.episode_id in known else "pending")
        if entry.identity is not None:
            seen.add(entry.identity)
        feedback_column.count(place, entry, span)
    return Ledger((episodes_column.row(), feedback_column.row()))


def ledger_entries(records: Iterable[Record], forgotten: Forgotten | None = None) -> Iterator[LedgerEntry]:
    """What the ledger needs from records of episodes or feedback, so that the rest need not stay in memory."""
    covers = (forgotten or Forgotten()).covers
    for record in records:
        erased = False
        try:
            event = EPISODES.decode(record.value) if record.topic == EPISODES.name else FEEDBACK.decode(record.value)
        except InvalidEvent:
            identity = None
        else:
            identity = (event.episode_id, event.feedback_id if isinstance(event, Feedback) else "")
            erased = covers(event.user_id, event.at if isinstance(event, Feedback) else event.ended_at, record.timestamp_ms)
        yield LedgerEntry(record.partition, record.offset, record.timestamp_ms, identity, erased)


class _ArrivalSpan:
    """A span of arrival times."""

    def __init__(self, since: datetime | None, until: datetime | None) -> None:
        self._since_ms = (since - EPOCH).total_seconds() * 1000 if since else float("-inf")
        self._until_ms = (until - EPOCH).total_seconds() * 1000 if until else float("inf")

    def covers(self, entry: LedgerEntry) -> bool:
        return self._since_ms <= entry.arrived_ms < self._until_ms


class _Column:
    """Counts a topic's records by where they are now."""

    def __init__(self, topic: str) -> None:
        self._topic, self._counts = topic, Counter[str]()
        self._missing: list[str] = []

    def count(self, place: str, entry: LedgerEntry, span: _ArrivalSpan) -> None:
        if span.covers(entry):
            self._counts[place] += 1
            if place == "missing":
                self._missing.append(entry.feedback_id or entry.episode_id or f"{self._topic}/{entry.partition}/{entry.offset}")

    def row(self) -> Row:
        counts = self._counts
        return Row(
            self._topic,
            counts.total(),
            counts["joined"],
            counts["pending"],
            counts["expired"],
            counts["dead_lettered"],
            counts["duplicates"],
            tuple(self._missing),
            counts["erased"],
        )


def _reasons(letters: Iterable[Record]) -> dict[Where, str]:
    """The join's reason for each dead letter, by the place of the original record."""
    found = {}
    for record in letters:
        try:
            letter = DEAD_LETTERS.decode(record.value)
        except InvalidEvent:
            continue
        if letter.part == "join":
            found[letter.source_topic, letter.source_partition, letter.source_offset] = letter.reason
    return found


def _named(labels: Iterable[Record]) -> dict[str, frozenset[str]]:
    """The feedback that the newest label of each episode names."""
    found: dict[str, frozenset[str]] = {}
    for record in labels:
        if record.value is None:  # nothing is left of it
            found.pop((record.key or b"").decode(errors="replace"), None)
            continue
        try:
            label = LABELS.decode(record.value)
        except InvalidEvent:
            continue
        found[label.episode_id] = frozenset(label.feedback_ids)
    return found


def _dead_letter_place(reasons: Mapping[Where, str], topic: str, entry: LedgerEntry) -> str | None:
    if (reason := reasons.get((topic, entry.partition, entry.offset))) is None:
        return None
    return "expired" if reason == "expired" else "dead_lettered"
