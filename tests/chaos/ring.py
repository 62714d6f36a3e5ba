"""The processes of a chaos run, each killed and started again as the test likes, and what must be true of the log when it is over."""

import random
import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from infra.settings.config import load, to_toml
from streams.core.errors import Unavailable
from streams.core.metrics import Metrics
from streams.core.topics import DEAD_LETTERS, EPISODES, FEEDBACK, LABELS
from streams.join.ledger import Ledger, read_ledger
from streams.kafka import KafkaSettings, create_topics, end_offsets, read_to_end
from streams.lake.parquet_lake import Lake
from tests.chaos.child import SEED, Child
from tests.chaos.history import history, newest, undisturbed, write
from tests.support.running import wait_for

STREAMS = ("join.batch_records=100", "lake.flush_s=1", "lake.retry_s=0.5")


class Ring:
    """Two outboxes that publish a seeded history, and two processes of streams (join and lake), each with a disk of its own."""

    def __init__(self, folder: Path, kafka: KafkaSettings, episodes: int, per_second: float, environment: Mapping[str, str] | None = None) -> None:
        """``per_second``: events of both outboxes together."""
        self.folder, self.kafka, self._environment = folder, kafka, environment or {}
        self.chance, begin = random.Random(SEED), datetime.now(UTC) - timedelta(hours=6)  # nothing is given after it arrives
        events = history(self.chance, episodes, begin)
        self.expected, self.episodes = undisturbed(events, begin), episodes
        self.children: dict[str, Child] = {}
        create_topics(kafka)
        for number, name in enumerate(("actor-a", "actor-b")):  # an episode and its feedback come from one replica, as behind a sticky front
            mine = [event for event in events if int(event.episode_id.split("-")[1]) % 2 == number]
            write(mine, self._at(name) / "events")
            self._add(name, "-m", "tests.chaos.publishing", kafka.model_dump_json(), str(folder / name), str(folder / name / "events"),
                      str(per_second / 2), "each")  # fmt: skip
        for name in ("streams-a", "streams-b"):
            self.add_part(name, "streams", f"policy.base={folder}", *STREAMS)

    def add_part(self, name: str, role: str, *overrides: str) -> None:
        """``tidemill run ROLE``, as it runs everywhere."""
        settings = load(None, (f"run_folder={self._at(name)}", f"artifacts_uri={self.folder / 'artifacts'}", *overrides), {})
        settings = settings.model_copy(update={"kafka": self.kafka})
        (self._at(name) / "ring.toml").write_text(to_toml(settings))
        self._add(name, "-P", "-m", "infra.cli", "run", role, "--config", str(self._at(name) / "ring.toml"))

    def start(self, *names: str) -> None:
        for name in names or tuple(self.children):
            self.children[name].start()

    def kill(self, *names: str) -> None:
        """SIGKILL, all at the same moment as far as one can."""
        for name in names:
            self.children[name].tell(signal.SIGKILL)
        for name in names:
            self.children[name].ended()

    def books(self) -> Ledger:
        """They balance at any moment, or the test is over. Raises Unavailable."""
        books = read_ledger(self.kafka)
        assert books.balanced, books
        return books

    def await_outboxes(self) -> None:
        """Until each outbox has taken in more events than it had."""
        before = self._taken()
        wait_for(lambda: all(now > then for now, then in zip(self._taken(), before, strict=True)))

    def settle(self, timeout_s: float = 240) -> None:
        """Until all is published and joined; then everything is where it would be had nothing happened."""
        until = time.monotonic() + timeout_s
        while not self._is_over():
            died = [f"{name}:\n{child.log.read_text()[-3000:]}" for name, child in self.children.items() if child.died()]
            assert not died, "\n".join(died)
            assert time.monotonic() < until, f"{self._state()}\n{self.children['streams-a'].log.read_text()[-2000:]}"
            time.sleep(0.5)
        books = self.books()
        assert books.rows[0].joined == self.episodes
        assert books.rows[1].joined == sum(len(label.feedback_ids) for label in self.expected.values())
        assert list(read_to_end(self.kafka, DEAD_LETTERS, "test", Metrics())) == []
        self._lakes_are_whole()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill(*self.children)

    def lake(self, name: str) -> Lake:
        return Lake(str(self.folder / name / "lake"))

    def _is_over(self) -> bool:
        try:
            books = self.books()
        except Unavailable:
            return False
        published = all((self.folder / name / "done").exists() for name in ("actor-a", "actor-b"))
        return published and not any(row.pending for row in books.rows) and newest(self.kafka) == self.expected

    def _taken(self) -> list[int]:
        return [int((self.folder / name / "place").read_bytes() or b"0") for name in ("actor-a", "actor-b")]

    def _state(self) -> str:
        labels = newest(self.kafka)
        wrong = [name for name, label in self.expected.items() if labels.get(name) != label]
        done = [(self.folder / name / "done").exists() for name in ("actor-a", "actor-b")]
        return f"{read_ledger(self.kafka)}\npublished: {done}; labels that differ: {len(wrong)} {wrong[:5]}"

    def _lakes_are_whole(self) -> None:
        """Each lake holds every record of the log, without a gap, and its writer stops in good order."""
        names, kept_topics, until = ("streams-a", "streams-b"), (EPISODES, FEEDBACK, LABELS), time.monotonic() + 60
        ends = {topic: {p: end for p, end in end_offsets(self.kafka, topic, Metrics()).items() if end} for topic in kept_topics}
        while any(self.lake(name).positions(topic).get(p, 0) < end for name in names for topic in kept_topics for p, end in ends[topic].items()):
            assert time.monotonic() < until, {name: {topic.short_name: self.lake(name).positions(topic) for topic in kept_topics} for name in names}
            time.sleep(0.3)
        wait_for(lambda: all(self.children[name].has_begun() for name in names))
        for name in names:
            self.children[name].tell(signal.SIGTERM)
        for name in names:
            assert (status := self.children[name].ended()) == 0, f"{name} ended with {status}\n{self.children[name].log.read_text()[-3000:]}"
        for name in names:
            for topic in kept_topics:
                kept = sorted((record.partition, record.offset) for record in self.lake(name).records(topic))
                assert kept == [(p, offset) for p, end in sorted(self.lake(name).positions(topic).items()) for offset in range(end)], (name, topic)

    def _add(self, name: str, *arguments: str) -> None:
        self.children[name] = Child([sys.executable, *arguments], self.folder / f"{name}.log", self._environment)

    def _at(self, name: str) -> Path:
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return self.folder / name
