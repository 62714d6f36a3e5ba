"""Keeps the console's facts up with the log: one thread reads all topics from their beginning, through brokers that go away."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from dashboards.console.console_facts import ConsoleFacts
from streams.core.errors import ConfigError, Unavailable
from streams.core.metrics import Metrics
from streams.core.topics import TOPICS
from streams.kafka import Consumer, KafkaSettings, RecordPlace

log = structlog.get_logger()
RETRY_S = 2.0
LAG_EVERY_S = 5.0
SILENT_S = 15.0
"""Without an answer of Kafka for this long the facts count as old; its client may take longer to give up."""


class LogFollowing:
    """Facts behind a lock, and whether they are up to date."""

    def __init__(self, kafka: KafkaSettings, facts: ConsoleFacts, metrics: Metrics, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._kafka, self._facts, self.metrics = kafka, facts, metrics
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._positions: dict[tuple[str, int], int] = {}
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)
        self._failure: str | None = "the log is being read"
        self._clock_s, self._heard_s = clock_s, clock_s()

    @property
    def failure(self) -> str | None:
        """Why the facts may be old, for an operator; None while they are not."""
        silent_s = self._clock_s() - self._heard_s
        if self._failure is None and silent_s > SILENT_S:
            return f"Kafka has not answered for {silent_s:.0f} s: these numbers are as old as that"
        return self._failure

    @contextmanager
    def facts(self) -> Iterator[ConsoleFacts]:
        """The facts, standing still. Hold them for no longer than it takes to render a page."""
        with self._lock:
            yield self._facts

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=10)

    def await_place(self, place: RecordPlace, timeout_s: float = 5.0) -> None:
        """Wait, with a time limit, until the facts include this record, so that the next page shows what the operator has just done."""
        until = time.monotonic() + timeout_s
        while self._thread.is_alive() and self._positions.get((place.topic, place.partition), 0) <= place.offset and time.monotonic() < until:
            time.sleep(0.05)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._session(self._positions)
            except (Unavailable, ConfigError) as error:
                self._failure = str(error)
                log.warning("console waits", error=str(error))
                self._stopping.wait(RETRY_S)

    def _session(self, positions: dict[tuple[str, int], int]) -> None:
        """From connecting to the first failure; the next session goes on where this one ended."""
        consumer = Consumer(self._kafka, TOPICS, "console", self.metrics)
        asked_s = 0.0
        try:
            consumer.seek(positions)
            while not self._stopping.is_set():
                records = consumer.poll(0.5, max_records=500)
                now_ms = int(time.time() * 1000)
                with self._lock:
                    for record in records:
                        self._facts.take(record, now_ms)
                        positions[record.topic, record.partition] = record.offset + 1
                if time.monotonic() >= asked_s:
                    asked_s = time.monotonic() + LAG_EVERY_S
                    behind = consumer.measure_lag()
                    self._failure = f"{behind} records of the log are still to be read" if behind > len(records) + 500 else None
                    self._heard_s = self._clock_s()
        finally:
            consumer.close()
