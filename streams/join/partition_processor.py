"""One partition of the join: its state, the offsets up to which both inputs are folded, and the labels that wait to be sent."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterable
from datetime import datetime, timedelta

import structlog

from streams.core.errors import InvalidEvent
from streams.core.events import Label
from streams.core.part_context import PartContext
from streams.core.poison_records import RecordInHand, blamed_on_record
from streams.core.topics import EPISODES, ERASURES, FEEDBACK, LABELS
from streams.core.traces import Headers
from streams.erasure.erasure_follower import ErasureFollower
from streams.erasure.forgotten_people import record_without
from streams.join.episode_state import ArrivedFeedback
from streams.join.feedback_join import REMEMBERED, FeedbackJoin
from streams.join.join_erasure import erase_from_partition
from streams.join.join_settings import JoinSettings
from streams.join.restored_state import state_from_label
from streams.join.sqlite_state import EPOCH, PartitionState, Reached
from streams.join.stale_label_repair import MOST_READ, known_through, labels_to_repair
from streams.kafka import Assigned, Consumer, Producer, Publisher, Record, RecordPlace, read_between
from streams.kafka.dead_letters import DeadLetters
from streams.kafka.partitioning import partition_of

TRACED = 10_000
INPUTS = (EPISODES.name, FEEDBACK.name)
KEPT = (*INPUTS, ERASURES.name, LABELS.name)
LAST_MS = 32_503_680_000_000  # the year 3000: a sender's clock may say anything, where the broker's is not used
log = structlog.get_logger()


class PartitionProcessor:
    """Joins one partition of episodes with the same partition of feedback."""

    def __init__(
        self,
        number: int,
        settings: JoinSettings,
        context: PartContext,
        letters: DeadLetters,
        erasures: ErasureFollower,
        remembered: timedelta = REMEMBERED,
    ) -> None:
        """``remembered``: how long the log can hold a record about an episode."""
        self.number, self._context, self._letters, self._erasures = number, context, letters, erasures
        self._settings = settings
        self.store = PartitionState(context.state / f"join-{number}.sqlite3", settings.cached_episodes // context.kafka.partitions)
        self._remembered = max(remembered, settings.window)
        self._in_hand = RecordInHand(context.state / f"join-{number}.in-hand")
        self._join = FeedbackJoin(self.store, settings, self._set_aside, self._remembered)
        self.reached = {name: self.store.reached.get(name, Reached()) for name in KEPT}
        self._target = dict.fromkeys(INPUTS, 0)
        self.group_offsets: dict[tuple[str, int], int] = {}
        """What the group has committed, as far as we know."""
        self._lacks_records = False
        self.catching_up = False
        """True while another member has been further: records up to its offsets are folded without publishing, since their labels are on the log."""
        self._labels: dict[str, Label] = {}
        self._sent: list[tuple[Label | None, Callable[[], RecordPlace]]] = []
        self._offsets: list[int] = []
        self._traced: OrderedDict[str, Headers] = OrderedDict()
        """Trace contexts of the newest episodes. Empty when traces are off."""
        self._headers: dict[str, Headers] = {}
        self._read_at = context.clock.monotonic_s()
        self.changed = False

    def close(self) -> None:
        """Close the state's files. What was not committed will be folded again."""
        self.store.close()
        self._in_hand.close()

    def start(self, consumer: Consumer) -> dict[tuple[str, int], int]:
        """The offsets to read from: those of the state, or the beginning when the state belongs to another log.

        Where the group's offsets are further, another member had taken over meanwhile. Then we fold up to those offsets before we publish
        anything, since a label from older state would replace a newer one.
        """
        bounds = {topic: consumer.bounds([(topic, self.number)])[topic, self.number] for topic in INPUTS}
        if any(self.reached[topic].next > end for topic, (_, end) in bounds.items()):
            log.warning("the join's state belongs to another log and is rebuilt", partition=self.number)
            self.store.clear()
            self.reached = dict.fromkeys(KEPT, Reached())
        for topic, (first, _) in bounds.items():
            if 0 < self.reached[topic].next < first:
                lost = first - self.reached[topic].next
                log.error("the join was down for longer than the log is kept: records are lost", topic=topic, partition=self.number, lost=lost)
        self.group_offsets = done = consumer.committed((topic, self.number) for topic in INPUTS)
        self._target = {topic: min(done[topic, self.number], end) for topic, (_, end) in bounds.items()}
        self._lacks_records = any(self.reached[topic].next < min(first, done[topic, self.number]) for topic, (first, _) in bounds.items())
        self.catching_up = any(self.reached[topic].next < target for topic, target in self._target.items())
        return self.go_on()

    def go_on(self) -> dict[tuple[str, int], int]:
        """The offsets to read from after a rebalance that left this partition here."""
        return {(topic, self.number): self.reached[topic].next for topic in INPUTS}

    def catch_up(self, consumer: Consumer) -> None:
        """Publish again once both inputs are folded up to the group's offsets. What was read beyond them is read again."""
        positions = consumer.positions()
        if all(positions[topic, self.number] >= target for topic, target in self._target.items()):
            if self._lacks_records:
                self._restore_from_labels(consumer.bounds([(LABELS.name, self.number)])[LABELS.name, self.number][1])
            consumer.seek({(topic, self.number): max(self.reached[topic].next, target) for topic, target in self._target.items()})
            self.catching_up = False
            log.info("the join has caught up", partition=self.number)

    def _restore_from_labels(self, end: int) -> None:
        """Other members folded records that the log no longer has: what came of them is in the labels."""
        oldest = EPOCH + timedelta(milliseconds=max(place.arrived_ms for place in self.reached.values())) - self._remembered
        restored = 0
        for record in read_between(self._context.kafka, LABELS, self.number, 0, end, "join", self._context.metrics):
            left = record_without(record, self._erasures.forgotten, self._settings)
            if left.value is None:
                continue
            try:
                label = LABELS.decode(left.value)
            except InvalidEvent:
                continue
            if (state := state_from_label(self.store.get(label.episode_id), label, self._settings.window, oldest)) is not None:
                self.store[label.episode_id] = state
                restored += 1
        self.changed = self.changed or restored > 0
        log.warning("the log no longer has all records: their episodes come from the labels", partition=self.number, restored=restored)

    @property
    def places(self) -> dict[tuple[str, int], int]:
        """The offsets to commit for this partition. They never go back."""
        return {(topic, self.number): max(self.reached[topic].next, target) for topic, target in self._target.items()}

    def take(self, record: Record) -> None:
        """Fold one record; a bad one is set aside."""
        place = self.reached[record.topic]
        if record.offset < place.next or (self.catching_up and record.offset >= self._target[record.topic]):
            return
        arrived_ms = min(max(record.timestamp_ms, 0), LAST_MS)
        self.reached[record.topic] = Reached(record.offset + 1, max(place.arrived_ms, arrived_ms))
        self._read_at, self.changed = self._context.clock.monotonic_s(), True
        now = EPOCH + timedelta(milliseconds=arrived_ms)
        try:
            label = self._fold(record, now)
        except InvalidEvent as error:
            if not self.catching_up:
                self._letters.set_aside(record, error)
            return
        if self.catching_up:
            self._join.tally.clear()
            return
        if self._context.traces.enabled:
            self._trace(record, None if label is None else label.episode_id)
        if label is not None:
            self._labels[label.episode_id] = label

    def _trace(self, record: Record, labelled: str | None) -> None:
        """Remember an episode's trace context for its labels. A label's span continues it and links to the feedback's trace."""
        key, now = (record.key or b"").decode(errors="replace"), self._context.clock.now()
        if record.topic == EPISODES.name:
            self._traced[key] = record.headers
            if len(self._traced) > TRACED:
                self._traced.popitem(last=False)
        if labelled is not None:
            began = EPOCH + timedelta(milliseconds=min(max(record.timestamp_ms, 0), LAST_MS))
            follows = (record.headers, self._traced.get(labelled, ()))
            self._headers[labelled] = self._context.traces.record_span("join", min(began, now), now, follows, episode=labelled)

    def _fold(self, record: Record, now: datetime) -> Label | None:
        """Fold one record. What a person gave before their erasure is skipped, however late it arrives."""
        covers = self._erasures.forgotten.covers
        with self._in_hand.working_on(record.topic, record.partition, record.offset, "the join"):
            if record.topic == EPISODES.name:
                episode = EPISODES.decode(record.value)
                return None if covers(episode.user_id, episode.ended_at, record.timestamp_ms) else self._join.on_episode(episode, now)
            feedback = FEEDBACK.decode(record.value)
            return None if covers(feedback.user_id, feedback.at, record.timestamp_ms) else self._join.on_feedback(feedback, now, record.offset)

    @property
    def erasures_due(self) -> bool:
        """True while there are erasures that this partition has not carried out."""
        return self.reached[ERASURES.name].next < self._erasures.end

    def erase_people(self, labels: Iterable[Record], erasures_end: int, producer: Producer) -> None:
        """Carry out the new erasures before this offset, in the state and in ``labels`` (the newest on the log that name these people). Commits
        everything folded."""
        asked = [each for each in self._erasures.since(self.reached[ERASURES.name].next) if each.offset < erasures_end]
        removal = erase_from_partition(self.store, self._join, self._erasures.forgotten, labels, self._settings)
        end = removal.publish(producer)
        self.commit()
        self.store.wipe_log()
        removal.report(asked, self.number, end, producer, self._context.clock.now())
        self.reached[ERASURES.name] = Reached(max(erasures_end, self.reached[ERASURES.name].next))
        self.commit()
        log.info("people erased", partition=self.number, people=len(asked), **removal.removed)

    def expire(self, behind: Container[tuple[str, int]]) -> None:
        """Drop what is older than the window, by the watermark: the arrival time that both inputs have passed.

        The watermark is the log's own time, so a jump of this machine's clock expires nothing. When both inputs are read to their ends, it
        advances with real time. ``behind``: what Kafka holds more of than was read; a partition whose broker is slow must not be taken for read.
        """
        if self.catching_up:
            return
        unread = [self.reached[topic].arrived_ms for topic in INPUTS if (topic, self.number) in behind]
        newest = max(self.reached[topic].arrived_ms for topic in INPUTS)
        passed_ms = min(unread) if unread else newest + (self._context.clock.monotonic_s() - self._read_at) * 1000
        if newest and self._join.expire(EPOCH + timedelta(milliseconds=passed_ms)):
            self.changed = True

    def publish(self, producer: Publisher) -> None:
        """Start sending the newest label of each changed episode. Feedback that makes a label too large is set aside."""
        self._sent.clear()
        self._offsets.clear()
        for label in self._labels.values():
            try:
                with blamed_on_record("encoding its label"):
                    self._sent.append((label, producer.send(LABELS, label, self._headers.get(label.episode_id, ()))))
            except InvalidEvent as error:  # too large
                self._refuse(label, error, producer)

    def settle(self, producer: Publisher) -> None:
        """Wait until the log has every label that was sent, or a smaller one and dead letters where the topic does not take it."""
        refused = 0
        for label, sent in self._sent:
            try:
                if (place := sent()).partition == self.number:
                    self._offsets.append(place.offset)
            except InvalidEvent as error:
                self._refuse(label, error, producer)
                refused += 1
        self._sent.clear()
        if refused:
            producer.flush()

    def _refuse(self, label: Label | None, error: InvalidEvent, producer: Publisher) -> None:
        """Set feedback aside, the longest of the new first, until Kafka takes a label of the rest: what was too large must not hold up what comes."""
        while label is not None and (left_out := self._join.leave_out(label.episode_id)) is not None:
            self._set_aside(left_out, error)
            if (label := self._join.label(label.episode_id)) is None:
                return
            try:
                with blamed_on_record("encoding its label"):
                    if (place := producer.send(LABELS, label)()).partition == self.number:
                        self._offsets.append(place.offset)
                return
            except InvalidEvent as refused:
                error = refused

    def commit(self) -> None:
        """Make state and offsets durable. What was sent is settled."""
        self.reached[LABELS.name] = Reached(known_through(self.reached[LABELS.name].next, self._offsets))
        self._offsets.clear()
        self.store.commit(self.reached)
        tally, now, metrics = self._join.tally, self._context.clock.now(), self._context.metrics
        for feedback in tally.joined:
            metrics.observe("tidemill_thumb_to_label_seconds", (now - feedback.at).total_seconds())
        for kind, count in Counter(feedback.kind.value for feedback in tally.joined).items():
            metrics.add("tidemill_feedback_joined_total", count, kind=kind)
        metrics.add("tidemill_feedback_duplicates_total", tally.duplicate_feedback)
        metrics.add("tidemill_episode_duplicates_total", tally.duplicate_episodes)
        metrics.add("tidemill_labels_total", len(self._labels))
        self._labels.clear()
        self._headers.clear()
        tally.clear()
        self.changed = False

    def repair_labels(self, end: int, producer: Producer) -> None:
        """Check labels that other members wrote before offset ``end``, and send again those that lost feedback. Commits everything folded."""
        first = self.reached[LABELS.name].next
        if first >= (end := min(end, first + MOST_READ)):
            return
        written = read_between(self._context.kafka, LABELS, self.number, first, end, "join", self._context.metrics)
        found = labels_to_repair(written, self._join, self._erasures.forgotten, self._settings)
        for episode_id in found:
            log.warning("a stale label is replaced", partition=self.number, episode=episode_id)
        self._labels.update({episode_id: label for episode_id, label in found.items() if label is not None})
        self.publish(producer)
        self._sent += [(None, producer.retract(LABELS, episode_id)) for episode_id, label in found.items() if label is None]
        producer.flush()
        self.settle(producer)
        self.reached[LABELS.name] = Reached(end)
        self.commit()

    def _set_aside(self, arrived: ArrivedFeedback, error: InvalidEvent) -> None:
        if self.catching_up:
            return
        feedback = arrived.feedback
        if error.reason == "expired" and (right := partition_of(feedback.key.encode(), self._context.kafka.partitions)) != self.number:
            # The most common reason for an episode that never arrives: a client with another partitioner.
            error = InvalidEvent(
                "expired", f"{error}; it is in partition {self.number}, but Kafka's partitioner (murmur2 of the episode_id) gives {right}"
            )
        arrived_ms = (arrived.at - EPOCH) // timedelta(milliseconds=1)
        record = Record(FEEDBACK.name, self.number, arrived.offset, arrived_ms, feedback.key.encode(), feedback.encode())
        self._letters.set_aside(record, error, feedback.feedback_id)


def take_assigned(assigned: Assigned, parts: dict[int, PartitionProcessor], consumer: Consumer, make: Callable[[int], PartitionProcessor]) -> None:
    """Make ``parts`` what is assigned. Partitions that were ours all along go on where they are; whatever else was in hand is dropped."""
    kept = {number for number, part in parts.items() if _was_ours_all_along(part, assigned, consumer)}
    for number in sorted(parts.keys() - kept):
        parts.pop(number).close()
    for number in sorted({number for _, number in assigned.partitions} - kept):
        parts[number] = make(number)
    starts = [part.go_on() if number in kept else part.start(consumer) for number, part in parts.items()]
    consumer.seek({place: offset for start in starts for place, offset in start.items()})
    log.info(
        "the join owns partitions", partitions=sorted(parts), kept=sorted(kept), catches_up=sorted(n for n, part in parts.items() if part.catching_up)
    )


def _was_ours_all_along(part: PartitionProcessor, assigned: Assigned, consumer: Consumer) -> bool:
    """Nobody else has worked on this partition: it was not given up, and the group's offsets are those that we know."""
    places = [(topic, part.number) for topic in INPUTS]
    return assigned.kept.issuperset(places) and consumer.committed(places) == part.group_offsets
