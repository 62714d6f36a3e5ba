"""Follows the topics in a thread, and keeps the facts that progress, report and status show."""

import threading
from collections import Counter
from dataclasses import dataclass, field

from actor.promotion.promotion_stages import AdapterStanding
from streams.core.errors import InvalidEvent, Unavailable
from streams.core.events import AdapterVersion, Attestation, Event, Label, Promotion, RewardModelVersion
from streams.core.metrics import Metrics
from streams.core.topics import ADAPTERS, ATTESTATIONS, BY_NAME, DEAD_LETTERS, LABELS, PROMOTIONS, REWARD_MODELS
from streams.kafka import Consumer, KafkaSettings

RETRY_S = 1.0


@dataclass
class LogFacts:
    """Facts from the log so far."""

    labels: dict[str, Label] = field(default_factory=dict)
    """By episode."""
    reward_models: list[RewardModelVersion] = field(default_factory=list)
    adapters: list[AdapterVersion] = field(default_factory=list)
    attestations: list[Attestation] = field(default_factory=list)
    dead_letters: Counter[str] = field(default_factory=Counter)
    """By reason."""
    undecodable: int = 0
    standing: AdapterStanding | None = None
    """State of promotions in gated mode; None in newest mode."""

    @property
    def thumbs(self) -> int:
        """Votes in the current labels."""
        return sum(len(label.votes) for label in list(self.labels.values()))

    @property
    def serving(self) -> str:
        """Gated mode: production. Newest mode: the newest attested adapter. ``base`` while there is none."""
        if self.standing is not None:
            return self.standing.production or "base"
        passed = [a for a in self.attestations if a.passed]
        return passed[-1].adapter if passed else "base"

    def take(self, event: Event) -> None:
        """Add an event."""
        match event:
            case Label():
                self.labels[event.episode_id] = event
            case RewardModelVersion():
                self.reward_models.append(event)
            case AdapterVersion():
                self.adapters.append(event)
            case Attestation():
                self.attestations.append(event)
            case Promotion() if self.standing is not None:
                self.standing = self.standing.after(event)

    def first_thumb_to_adapter_s(self) -> float | None:
        """Seconds from the first thumb to the first adapter whose reward model had learned from it."""
        first = min((label.first_feedback_at for label in self.labels.values()), default=None)
        if first is None or not self.adapters:
            return None
        return (min(adapter.created_at for adapter in self.adapters) - first).total_seconds()


class LogWatch:
    """Follows labels, reward models, adapters, attestations, promotions and dead letters from the beginning, in its own thread."""

    def __init__(self, kafka: KafkaSettings, gated_policy: str | None = None) -> None:
        """``gated_policy``: the policy in gated mode; None in newest mode."""
        self.facts = LogFacts(standing=AdapterStanding(gated_policy) if gated_policy else None)
        self.caught_up = False
        """True once the log has been read to its end."""
        self._kafka = kafka
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Raises ConfigError when no cluster is named or topics are missing, Unavailable when Kafka does not answer."""
        consumer = Consumer(self._kafka, [LABELS, REWARD_MODELS, ADAPTERS, ATTESTATIONS, PROMOTIONS, DEAD_LETTERS], "watch", Metrics())
        self._thread = threading.Thread(target=self._follow, args=(consumer,), name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read to the current end, then stop."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def _follow(self, consumer: Consumer) -> None:
        try:
            while not (self._stopping.is_set() and self._at_end(consumer)):
                try:
                    records = consumer.poll(timeout_s=0.5)
                except Unavailable:
                    if self._stopping.wait(RETRY_S):
                        return
                    continue
                self.caught_up = self.caught_up or (not records and self._at_end(consumer))
                for record in records:
                    if record.topic == LABELS.name and record.value is None:
                        self.facts.labels.pop((record.key or b"").decode(errors="replace"), None)
                        continue
                    try:
                        event = BY_NAME[record.topic].decode(record.value)
                    except InvalidEvent:
                        self.facts.undecodable += 1
                        continue
                    if record.topic == DEAD_LETTERS.name:
                        self.facts.dead_letters[DEAD_LETTERS.decode(record.value).reason] += 1
                    self.facts.take(event)
        finally:
            consumer.close()

    def _at_end(self, consumer: Consumer) -> bool:
        try:
            return consumer.measure_lag() == 0
        except Unavailable:
            return True
