"""Records that no well-behaved client writes: each sort by name, and whether the join may use it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from kafka import KafkaProducer

from streams.core.events import Episode, Feedback
from streams.core.topics import EPISODES, FEEDBACK
from streams.kafka import KafkaSettings

CODECS = ("gzip", "snappy", "lz4", "zstd")
IN_THE_YEAR_3000 = datetime(3000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class PoisonRecord:
    """One record to send as it is."""

    sort: str
    topic: str
    value: bytes | None
    usable: bool
    """False: it must become a dead letter. True: the join must use it, or wait for its episode."""
    key: bytes | None = b"poison"
    timestamp_ms: int | None = None
    codec: str | None = None


def poison(episode: Episode, thumb: Feedback) -> Iterator[PoisonRecord]:
    """One record of every sort, made from a good episode and a good thumb on it; their ids get the sort's name at the end."""
    for sort, spoil in UNUSABLE.items():
        for topic, event in ((EPISODES.name, episode), (FEEDBACK.name, thumb)):
            yield PoisonRecord(sort, topic, spoil(event.encode()), usable=False)
    for sort, change in UNUSUAL.items():
        named = episode.model_copy(update={"episode_id": f"{episode.episode_id}-{sort}"})
        yield PoisonRecord(sort, EPISODES.name, change(named.encode()), usable=True, key=named.key.encode())
        about = thumb.model_copy(update={"episode_id": named.episode_id, "feedback_id": f"{thumb.feedback_id}-{sort}"})
        yield PoisonRecord(sort, FEEDBACK.name, change(about.encode()), usable=True, key=about.key.encode())
    for codec in CODECS:
        named = episode.model_copy(update={"episode_id": f"{episode.episode_id}-{codec}"})
        yield PoisonRecord(f"compressed with {codec}", EPISODES.name, named.encode(), usable=True, key=named.key.encode(), codec=codec)
    unknown = thumb.model_copy(update={"episode_id": f"{thumb.episode_id}-nowhere", "feedback_id": f"{thumb.feedback_id}-nowhere"})
    yield PoisonRecord("an episode that never comes", FEEDBACK.name, unknown.encode(), usable=True, key=unknown.key.encode())
    early = thumb.model_copy(update={"feedback_id": f"{thumb.feedback_id}-1970"})
    yield PoisonRecord("a record from 1970", FEEDBACK.name, early.encode(), usable=True, key=early.key.encode(), timestamp_ms=1)
    late = thumb.model_copy(update={"feedback_id": f"{thumb.feedback_id}-3000", "at": IN_THE_YEAR_3000})
    yield PoisonRecord("feedback from the year 3000", FEEDBACK.name, late.encode(), usable=False, key=late.key.encode())


def _with(**fields: object) -> Callable[[bytes], bytes]:
    return lambda good: json.dumps(json.loads(good) | fields).encode()


UNUSABLE: dict[str, Callable[[bytes], bytes | None]] = {
    "no value": lambda good: None,
    "an empty value": lambda good: b"",
    "no text": lambda good: b"\xff\xfe\x00\x9d" * 20,
    "no JSON": lambda good: b"hello",
    "cut in the middle": lambda good: good[: len(good) // 2],
    "a list": lambda good: b"[" + good + b"]",
    "null": lambda good: b"null",
    "nested too deeply": lambda good: b'{"messages":' + b"[" * 100_000,
    "a version to come": _with(schema_version=99),
    "no id": lambda good: json.dumps({name: value for name, value in json.loads(good).items() if name != "episode_id"}).encode(),
    "an object as id": _with(episode_id={"a": 1}),
    "a time that is none": _with(at="yesterday", started_at="yesterday"),
    "a time without end": _with(at=10**400, started_at=10**400),
}
UNUSUAL: dict[str, Callable[[bytes], bytes]] = {
    "a byte order mark": lambda good: b"\xef\xbb\xbf" + good,
    "a field that nobody knows": _with(colour="blue"),
    "half an emoji": lambda good: good[:-1] + b',"note":"cut \\ud83d"}',
    "a registry's frame": lambda good: b"\x00\x00\x00\x00\x07" + good,
}


class PoisonWriter:
    """Sends poison by plain kafka-python, as a stranger would, and remembers where each record lies."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._producers = {codec: KafkaProducer(bootstrap_servers=settings.bootstrap_servers, compression_type=codec) for codec in (None, *CODECS)}
        self._sent: list[tuple[PoisonRecord, object]] = []

    def send(self, record: PoisonRecord) -> None:
        """Start sending one record."""
        sent = self._producers[record.codec].send(record.topic, key=record.key, value=record.value, timestamp_ms=record.timestamp_ms)
        self._sent.append((record, sent))

    def close(self) -> list[dict[str, object]]:
        """Wait for all; sort, usability and place of each."""
        told: list[dict[str, object]] = []
        for record, sent in self._sent:
            place = sent.get(timeout=60)  # type: ignore[attr-defined]
            told.append({"sort": record.sort, "usable": record.usable, "place": [place.topic, place.partition, place.offset]})
        for producer in self._producers.values():
            producer.close()
        return told
