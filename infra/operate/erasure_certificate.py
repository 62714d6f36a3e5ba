"""Requests an erasure, and makes its certificate: what each part removed, which versions had learned from it, what is still to do."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from streams.core.errors import InvalidEvent
from streams.core.events import Erased, Erasure, RewardModelVersion
from streams.core.metrics import Metrics
from streams.core.person_ids import people_of
from streams.core.topics import ATTESTATIONS, DAY_MS, DEAD_LETTERS, EPISODES, ERASED, ERASURES, FEEDBACK, LABELS, REWARD_MODELS, TOPICS
from streams.erasure.erasure_follower import read_erased
from streams.erasure.forgotten_people import Forgotten, record_without
from streams.join.feedback_join import DEFAULT_EVIDENCE
from streams.kafka import KafkaSettings, Producer, end_offsets, read_to_end

KNOWN_FOR, ALIVE_FOR = timedelta(days=30), timedelta(minutes=15)
"""How long before an erasure a lake must have answered one, and an actor attested something, to be asked for this one."""
NUMBERED = re.compile(r"^(.*[/@])(\d+)$")


@dataclass(frozen=True)
class Certificate:
    """The state of an erasure, from what the parts reported on the log."""

    person: str
    asked_at: str
    removed: dict[str, dict[str, int]] = field(default_factory=dict)
    """Number of removed items of each kind, by part and store."""
    learned: tuple[str, ...] = ()
    """Versions that had learned from their data."""
    rebuilt: str = ""
    """The first reward model without their data; empty while there is none."""
    waiting: tuple[str, ...] = ()
    """What is not done yet."""
    on_the_log: dict[str, int] = field(default_factory=dict)
    """Their records that Kafka's own files still hold, by topic: no part reads them, and retention deletes them."""

    @property
    def complete(self) -> bool:
        """True when every part that stores data has reported."""
        return not self.waiting

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "complete": self.complete}

    def __str__(self) -> str:
        """For a terminal."""
        nothing = "removed nothing, but their records are on the log" if self.on_the_log else "had nothing"
        lines = [f"person          {self.person[:16]}… (hash of the user_id), asked at {self.asked_at}"]
        for place, kinds in sorted(self.removed.items()):
            lines.append(f"{place:<24}" + (", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or nothing))
        lines.append(f"had learned from them   {'; '.join(ranges(self.learned)) or 'no version'}")
        lines.append(f"without them            {self.rebuilt or 'no reward model yet'}")
        lines += [f"not yet                 {each}" for each in self.waiting]
        kept = {topic.retention_ms // DAY_MS for topic in TOPICS if topic.retention_ms > 0}
        if self.on_the_log:
            lines.append("still on the log        " + ", ".join(f"{count} {kind}" for kind, count in sorted(self.on_the_log.items())))
        lines.append(f"Kafka's own files       deleted within {max(kept) + 1} days at most (labels: compacted within about a day)")
        return "\n".join(lines)


def ask(kafka: KafkaSettings, user_id: str, requested_by: str) -> Erasure:
    """Publish the erasure."""
    erasure = Erasure.of(user_id, requested_by, datetime.now(UTC))
    producer = Producer(kafka, Metrics(), "tidemill-erase")
    try:
        producer.publish(ERASURES, erasure)
    finally:
        producer.close()
    return erasure


def newest_erasure(kafka: KafkaSettings, user_id: str) -> Erasure | None:
    """The person's newest erasure."""
    people, found = people_of(user_id), None
    for record in read_to_end(kafka, ERASURES, "erase", Metrics()):
        try:
            erasure = ERASURES.decode(record.value)
        except InvalidEvent:
            continue
        found = erasure if erasure.person in people else found
    return found


def certificate(kafka: KafkaSettings, policy: str, erasure: Erasure) -> Certificate:
    """Read the log to its end."""
    metrics = Metrics()
    reports = read_erased(read_to_end(kafka, ERASED, "erase", metrics))
    done = [each for each in reports if each.person == erasure.person and each.erasure_at == erasure.at]
    newest = None
    for record in read_to_end(kafka, REWARD_MODELS, "erase", metrics):
        try:
            version = REWARD_MODELS.decode(record.value)
        except InvalidEvent:
            continue
        newest = version if version.policy == policy else newest
    others = sorted({*lakes_among(reports, erasure), *replicas_alive(kafka, erasure.at, metrics)})
    found = certified(erasure, done, newest, sorted(end_offsets(kafka, LABELS, metrics)), others)
    return replace(found, on_the_log=on_the_log(kafka, erasure, metrics)) if found.complete else found


def lakes_among(reports: Iterable[Erased], erasure: Erasure) -> set[str]:
    """Every lake that has answered an erasure in the days before this one: each holds data of its own, and answers for itself."""
    return {f"lake ({each.where})" for each in reports if each.part == "lake" and each.at >= erasure.at - KNOWN_FOR}


def replicas_alive(kafka: KafkaSettings, at: datetime, metrics: Metrics) -> set[str]:
    """Every actor that attested an adapter just before (each does so every ten minutes): it may remember episodes of the person."""
    found = set()
    for record in read_to_end(kafka, ATTESTATIONS, "erase", metrics):
        try:
            attestation = ATTESTATIONS.decode(record.value)
        except InvalidEvent:
            continue
        if at - ALIVE_FOR <= attestation.at <= at:
            found.add(f"actor ({attestation.replica})")
    return found


def on_the_log(kafka: KafkaSettings, erasure: Erasure, metrics: Metrics) -> dict[str, int]:
    """How many records that the erasure covers Kafka's own files still hold, by topic. Every reader passes them by; retention deletes them."""
    forgotten, found = Forgotten(), Counter[str]()
    forgotten.add(erasure, int(erasure.at.timestamp() * 1000))
    for topic in (EPISODES, FEEDBACK, DEAD_LETTERS):
        for record in read_to_end(kafka, topic, "erase", metrics):
            if record_without(record, forgotten, DEFAULT_EVIDENCE) is not record:
                found[topic.short_name] += 1
    return dict(found)


def certified(erasure: Erasure, done: Sequence[Erased], newest: RewardModelVersion | None, partitions: Sequence[int],
              others: Sequence[str] = ()) -> Certificate:  # fmt: skip
    """The certificate, from the records read. ``others``: further lakes and actors that must report."""
    removed = {f"{each.part} ({each.where})": each.removed for each in done}
    expected = [*(f"join (partition {number})" for number in partitions), "lake (files)", "learner (prompts)"]
    expected += [other for other in others if other not in expected]
    waiting = [f"{place} has not reported: does it run?" for place in expected if place not in removed]
    needed = {partition: offset for each in done for partition, offset in each.offsets.get(LABELS.name, {}).items()}
    rebuilt = ""
    if newest is not None:
        seen = newest.offsets.get(LABELS.name, {})
        if all(seen.get(partition, 0) >= offset for partition, offset in needed.items()):
            rebuilt = f"reward model {newest.policy}/{newest.version}, and every later one"
        else:
            waiting.append(f"reward model: the newest, {newest.policy}/{newest.version}, has not read the labels without them")
    learned = dict.fromkeys(name for each in done for name in each.learned)
    return Certificate(erasure.person, erasure.at.isoformat(timespec="seconds"), removed, tuple(learned), rebuilt, tuple(waiting))


def ranges(names: Iterable[str]) -> list[str]:
    """Joins consecutive numbered names: ``adapter default@3 to 7``."""
    runs: list[tuple[str, int, int]] = []
    for name in names:
        prefix, number = (named.group(1), int(named.group(2))) if (named := NUMBERED.match(name)) else (name, 0)
        if runs and runs[-1][0] == prefix and number == runs[-1][2] + 1:
            runs[-1] = (prefix, runs[-1][1], number)
        else:
            runs.append((prefix, number, number))
    told_as: Callable[[str, int, int], str] = lambda prefix, first, last: f"{prefix}{first}" + (f" to {last}" if last > first else "")  # noqa: E731
    return [told_as(*run) for run in runs]
