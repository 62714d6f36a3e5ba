"""What a part misses that was away for longer than Kafka keeps tombstones: a label that was deleted meanwhile simply never comes again."""

from datetime import datetime
from pathlib import Path
from typing import Any

from streams.core.metrics import Metrics
from streams.core.topics import Topic
from streams.kafka import KafkaSettings, read_to_end

TOMBSTONES_LIVE_S = 12 * 3600.0
"""Kafka keeps a tombstone for a day (``delete.retention.ms``) after the segment is compacted; half of it is safe."""


def may_have_missed(read_at: Path, now: datetime) -> bool:
    """True when the file ``read_at``, which is written whenever the topic is read, is too old or not there."""
    read_s = read_at.stat().st_mtime if read_at.exists() else 0.0
    return now.timestamp() - read_s > TOMBSTONES_LIVE_S


def keys_on_log(settings: KafkaSettings, topic: Topic[Any], part: str, metrics: Metrics) -> set[str]:
    """The keys of a compacted topic that have a value now, by one pass over the topic. Raises Unavailable."""
    live: dict[str, bool] = {}
    for record in read_to_end(settings, topic, part, metrics):
        live[(record.key or b"").decode(errors="replace")] = record.value is not None
    return {key for key, there in live.items() if there}
