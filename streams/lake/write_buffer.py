"""Records that the lake has read and not yet written."""

from streams.kafka import Record

Key = tuple[str, int]


class WriteBuffer:
    """Waiting records by topic and partition. Knows which topics are due to be written."""

    def __init__(self, flush_rows: int, flush_s: float, flush_bytes: int) -> None:
        self._flush_rows, self._flush_s, self._flush_bytes = flush_rows, flush_s, flush_bytes
        self._records: dict[Key, list[Record]] = {}
        self._since: dict[str, float] = {}
        self._bytes: dict[Key, int] = {}
        self.rows = 0

    def add(self, records: list[Record], now: float) -> None:
        """Add records. ``now``: seconds of a monotonic clock."""
        for record in records:
            key = (record.topic, record.partition)
            self._records.setdefault(key, []).append(record)
            self._bytes[key] = self._bytes.get(key, 0) + len(record.value or b"") + len(record.key or b"") + 100
            self._since.setdefault(record.topic, now)
        self.rows += len(records)

    def due(self, now: float) -> list[str]:
        """Topics whose records have waited long enough or are many enough; all topics when the memory limit is reached."""
        if sum(self._bytes.values()) >= self._flush_bytes:
            return self.topics()
        return [
            topic
            for topic, since in self._since.items()
            if now - since >= self._flush_s or sum(map(len, self.of(topic).values())) >= self._flush_rows
        ]

    def topics(self) -> list[str]:
        return list(self._since)

    def of(self, topic: str) -> dict[Key, list[Record]]:
        """Waiting records of a topic, by partition."""
        return {key: records for key, records in self._records.items() if key[0] == topic}

    def drop(self, key: Key) -> None:
        """Drop records that have been written."""
        self.rows -= len(self._records.pop(key))
        del self._bytes[key]
        if not self.of(key[0]):
            del self._since[key[0]]
