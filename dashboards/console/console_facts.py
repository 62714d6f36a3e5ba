"""The console's facts: a bounded read model of the whole log, folded record by record. It does not depend on Kafka or HTTP."""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from actor.promotion.promotion_stages import AdapterStanding
from infra.demo.intervals import Interval, share
from streams.core.errors import InvalidEvent
from streams.core.events import AdapterVersion, Attestation, DeadLetter, Episode, Erasure, Event, Label, Promotion, RewardModelVersion
from streams.core.poison_records import blamed_on_record
from streams.core.topics import BY_NAME, DEAD_LETTERS, LABELS, TOPICS
from streams.erasure.forgotten_people import Forgotten, record_without
from streams.join.feedback_join import DEFAULT_EVIDENCE
from streams.kafka import Record

V = TypeVar("V")
WINDOW_MS = 60_000
"""A rate is what came within the last minute."""
VERSIONS_KEPT = 2000


@dataclass(frozen=True)
class Letter:
    """A dead letter and its offset."""

    offset: int
    event: DeadLetter


@dataclass(frozen=True)
class ShownMove:
    """A promotion, and why it was void; None when it was a legal move."""

    event: Promotion
    void: str | None


@dataclass(frozen=True)
class Flow:
    """One topic, as it moves: records ever seen, records within the last minute, seconds since the last one (None: none yet)."""

    topic: str
    total: int
    per_minute: int
    idle_s: float | None


@dataclass(frozen=True)
class Approval:
    """How people judged one version: verdicts of at least one half, with Wilson's interval."""

    adapter: str
    labels: int
    interval: Interval


class NewestVersions(OrderedDict[str, V]):
    """The newest ``limit`` values by key; a key set again becomes the newest."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def put(self, key: str, value: V) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._limit:
            self.popitem(last=False)


@dataclass
class ConsoleFacts:
    """Everything that the pages show. Not thread-safe: hold the lock of ``LogFollowing``."""

    kept: int = 20_000
    totals: Counter[str] = field(default_factory=Counter)
    arrivals: dict[str, deque[int]] = field(default_factory=lambda: {topic.name: deque() for topic in TOPICS})
    """Arrival times of the last minute's records, in milliseconds, by topic."""
    last_ms: dict[str, int] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    """Dead letters by reason."""
    undecodable: int = 0

    def __post_init__(self) -> None:
        self.episodes: NewestVersions[Episode] = NewestVersions(self.kept)
        self.labels: NewestVersions[Label] = NewestVersions(self.kept)
        self.letters: NewestVersions[Letter] = NewestVersions(self.kept)
        self.adapters: NewestVersions[AdapterVersion] = NewestVersions(VERSIONS_KEPT)
        self.attestations: NewestVersions[Attestation] = NewestVersions(VERSIONS_KEPT)
        self.reward_models: deque[RewardModelVersion] = deque(maxlen=VERSIONS_KEPT)
        self.moves: deque[ShownMove] = deque(maxlen=VERSIONS_KEPT)
        self.standings: dict[str, AdapterStanding] = {}
        self._forgotten = Forgotten()

    def take(self, record: Record, now_ms: int) -> None:
        """One more record of any topic."""
        self.totals[record.topic] += 1
        self.last_ms[record.topic] = max(record.timestamp_ms, self.last_ms.get(record.topic, 0))
        if record.timestamp_ms > now_ms - WINDOW_MS:
            self.arrivals[record.topic].append(record.timestamp_ms)
        if record.value is None and record.topic == LABELS.name:
            self.labels.pop((record.key or b"").decode(errors="replace"), None)
            return
        try:
            with blamed_on_record("the console"):
                self._take(BY_NAME[record.topic].decode(record.value), record)
        except InvalidEvent:
            self.undecodable += 1

    def flows(self, now_ms: int) -> dict[str, Flow]:
        """Every topic by its short name."""
        return {topic.short_name: self._flow(topic.name, now_ms) for topic in TOPICS}

    @property
    def serving(self) -> str:
        """The newest adapter that a replica has attested, or ``base``."""
        return next((a.adapter for a in reversed(self.attestations.values()) if a.passed), "base")

    def standing(self, policy: str) -> AdapterStanding:
        """Where a policy's adapters stand by its promotions, as every replica reads them."""
        return self.standings.get(policy, AdapterStanding(policy))

    def approvals(self) -> list[Approval]:
        """By adapter in the order of the versions, the base first; labels without a verdict do not count."""
        verdicts: dict[str, list[bool]] = {}
        for label in self.labels.values():
            if label.verdict is not None:
                verdicts.setdefault(label.adapter or "base", []).append(label.verdict >= 0.5)
        return [Approval(name, len(verdicts[name]), share(verdicts[name])) for name in sorted(verdicts, key=version_of)]

    def served_after_s(self) -> list[tuple[AdapterVersion, float]]:
        """From the newest feedback that counted in an adapter to its first attestation, in seconds."""
        first: dict[str, datetime] = {}
        for told in self.attestations.values():
            if told.passed and (told.adapter not in first or told.at < first[told.adapter]):
                first[told.adapter] = told.at
        return [
            (adapter, (first[adapter.name] - adapter.newest_feedback_at).total_seconds())
            for adapter in self.adapters.values()
            if adapter.newest_feedback_at is not None and adapter.name in first
        ]

    def search(self, text: str = "", adapter: str = "", verdict: str = "") -> list[Episode]:
        """Newest first, by the time of the answer: all words of ``text`` in what was said or in the id, one adapter (``base`` for none), and a verdict
        (``up``, ``down``, ``mixed``, ``none``)."""
        words = text.casefold().split()
        found = [
            episode
            for episode in reversed(self.episodes.values())
            if (not adapter or (episode.adapter or "base") == adapter)
            and (not verdict or verdict_of(self.labels.get(episode.episode_id)) == verdict)
            and (not words or _has(words, episode))
        ]
        return sorted(found, key=lambda episode: episode.ended_at, reverse=True)  # the log is in order within a partition only

    def adapters_that_answered(self) -> list[str]:
        """Names for a filter, the base first."""
        return sorted({episode.adapter or "base" for episode in self.episodes.values()}, key=version_of)

    def _erase_person(self, erasure: Erasure, arrived_ms: int) -> None:
        """Labels follow by themselves: the join writes them anew."""
        self._forgotten.add(erasure, arrived_ms)
        for episode in list(self.episodes.values()):
            if self._forgotten.covers_by_event_time(episode.user_id, episode.ended_at):
                del self.episodes[episode.episode_id]
        for offset, letter in list(self.letters.items()):
            lies_at = Record(DEAD_LETTERS.name, 0, letter.offset, arrived_ms, None, letter.event.encode())
            self.letters[offset] = Letter(letter.offset, DEAD_LETTERS.decode(record_without(lies_at, self._forgotten, DEFAULT_EVIDENCE).value))

    def _flow(self, topic: str, now_ms: int) -> Flow:
        recent = self.arrivals[topic]
        while recent and recent[0] <= now_ms - WINDOW_MS:
            recent.popleft()
        last = self.last_ms.get(topic)
        return Flow(topic, self.totals[topic], len(recent), None if last is None else max(0.0, (now_ms - last) / 1000))

    def _take(self, event: Event, record: Record) -> None:
        match event:
            case Erasure():
                self._erase_person(event, record.timestamp_ms)
            case Episode() if self._forgotten.covers(event.user_id, event.ended_at, record.timestamp_ms):
                pass
            case Episode():
                self.episodes.put(event.episode_id, event)
            case Label():
                self.labels.put(event.episode_id, event)
            case RewardModelVersion():
                self.reward_models.append(event)
            case AdapterVersion():
                self.adapters.put(event.name, event)
            case Attestation():
                self.attestations.put(event.key, event)
            case Promotion():
                standing = self.standing(event.policy)
                self.moves.append(ShownMove(event, standing.refusal(event)))
                self.standings[event.policy] = standing.after(event)
            case DeadLetter():
                self.letters.put(str(record.offset), Letter(record.offset, event))
                self.reasons[event.reason] += 1


def verdict_of(label: Label | None) -> str:
    """A label in one word."""
    if label is None or label.verdict is None:
        return "none"
    return "up" if label.verdict > 0.5 else "down" if label.verdict < 0.5 else "mixed"


def version_of(adapter: str) -> tuple[str, int]:
    """Sorts ``default@10`` after ``default@9``, and the base first."""
    policy, at, number = adapter.rpartition("@")
    return (policy, int(number)) if at and number.isdigit() else ("", 0)


def _has(words: Iterable[str], episode: Episode) -> bool:
    said = " ".join([episode.episode_id, episode.user_id or "", *(m.text for m in episode.messages), episode.answer]).casefold()
    return all(word in said for word in words)
