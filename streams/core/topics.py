"""Every Kafka topic in one table: what it carries, who writes it, who reads it. Read from top to bottom, it is the data flow."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from streams.core.events import (
    AdapterVersion,
    Attestation,
    DeadLetter,
    Episode,
    Erased,
    Erasure,
    Event,
    Feedback,
    Label,
    Promotion,
    RewardModelVersion,
)

E = TypeVar("E", bound=Event)
DAY_MS = 86_400_000
FOR_EVER = -1


@dataclass(frozen=True)
class Topic(Generic[E]):
    """A Kafka topic: the event it carries, and the parts that write and read it."""

    short_name: str
    event: type[E]
    sentence: str
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    compacted: bool = False
    retention_ms: int = FOR_EVER
    partitioned: bool = False
    """True: ``kafka.partitions`` partitions. False: one partition, so that all events are in one order."""

    @property
    def name(self) -> str:
        """The topic's name in Kafka."""
        return f"tidemill.{self.short_name}.v1"

    def decode(self, raw: bytes | None) -> E:
        """The event in a record's value. Raises InvalidEvent."""
        return self.event.decode(raw)


EPISODES = Topic(
    "episodes",
    Episode,
    "one answer of a deployed agent, with its conversation",
    ("actor", "any agent"),
    ("streams", "learner"),
    retention_ms=7 * DAY_MS,
    partitioned=True,
)
FEEDBACK = Topic(
    "feedback",
    Feedback,
    "one signal from a person about an episode",
    ("actor", "any agent"),
    ("streams",),
    retention_ms=30 * DAY_MS,
    partitioned=True,
)
LABELS = Topic(
    "labels",
    Label,
    "the verdict on an episode from all feedback so far",
    ("streams",),
    ("reward", "learner", "promotion"),
    compacted=True,
    partitioned=True,
)
REWARD_MODELS = Topic("reward-models", RewardModelVersion, "a reward-model version", ("reward",), ("learner", "promotion"), compacted=True)
ADAPTERS = Topic("adapters", AdapterVersion, "a LoRA version of a policy", ("learner",), ("actor", "promotion"), compacted=True)
ATTESTATIONS = Topic(
    "attestations", Attestation, "proof that a replica serves exactly that adapter", ("actor",), ("promotion", "operators"), compacted=True
)
PROMOTIONS = Topic("promotions", Promotion, "every move of an adapter, with its evidence", ("promotion",), ("actor", "operators"))
DEAD_LETTERS = Topic(
    "dead-letters", DeadLetter, "bytes that could not be used, where they came from, and why", ("all",), ("operators",), retention_ms=30 * DAY_MS
)
ERASURES = Topic("erasures", Erasure, "a person asked to be forgotten", ("operators",), ("streams", "learner", "actor", "promotion"), compacted=True)
ERASED = Topic(
    "erased", Erased, "a part has forgotten a person, and what it removed", ("streams", "learner", "actor"), ("streams", "operators"), compacted=True
)

TOPICS: tuple[Topic[Event], ...] = (EPISODES, FEEDBACK, LABELS, REWARD_MODELS, ADAPTERS, ATTESTATIONS, PROMOTIONS, DEAD_LETTERS, ERASURES, ERASED)  # type: ignore[assignment]
BY_NAME = {topic.name: topic for topic in TOPICS}
