"""One batch of records through the updater's steps, each told where it may run. Between Kafka's worker and the pure parts."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import structlog

from reward.features.part_features import features_of_part
from reward.fit.buffer_entry import BUFFER_LAYOUT, BufferEntry
from reward.fit.label_entries import ReadLabel, is_unreadable, labels_and_tombstones
from reward.settings import RewardSettings
from reward.trust.live_answers import LiveAnswers, report
from reward.trust.vote_propensity import Propensity
from reward.updater.read_progress import ReadProgress
from reward.updater.refitter import Refitter
from reward.updater.version_publisher import VersionPublisher
from streams.core.errors import InvalidEvent, Unavailable
from streams.core.events import Label
from streams.core.part_context import PartContext
from streams.core.poison_records import RecordInHand
from streams.core.topics import LABELS
from streams.erasure.missed_tombstones import keys_on_log, may_have_missed
from streams.kafka import Producer, Record, committed_offsets, end_offsets
from streams.kafka.dead_letters import DeadLetters

PART = "the reward updater"
TOGETHER = (f"{LABELS.name}, a batch", 0, 0)
"""In hand while the features of a batch are computed."""
log = structlog.get_logger()


@dataclass(frozen=True)
class Batch:
    """Records that were read, and the entries that they amount to."""

    records: Sequence[Record]
    entries: Sequence[BufferEntry]
    gone: Sequence[str] = ()
    """Episodes that have no label any more."""


class BatchState:
    """The batch in hand, and what went wrong with it."""

    def __init__(self) -> None:
        self.in_hand = asyncio.Lock()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.holds_all_labels = False
        """True while the buffer holds the labels of all partitions."""

    async def on_partitions_revoked(self, *_: object, **__: object) -> None:
        """Partitions were taken away; what is left may be a part."""
        self.holds_all_labels = False


class BatchSteps:
    """Everything the updater holds: backbone, buffer, versions, and a producer of its own."""

    def __init__(self, settings: RewardSettings, context: PartContext) -> None:
        self._context = context
        self._featurizer = featurizer = features_of_part(context.base, settings, context.state)
        self._in_hand = RecordInHand(context.state / "updater.in-hand")
        self._producer = Producer(context.kafka, context.metrics, "tidemill-reward")
        self._dead = DeadLetters(self._producer, context.clock, context.metrics, "reward")
        self._versions = VersionPublisher(settings, context, self._producer, featurizer.fingerprint)
        propensity = Propensity.load(settings.propensity_file) if settings.propensity_file else None
        self._refitter = Refitter(settings, featurizer, self._versions.newest_model(), propensity, context.kafka.partitions)
        self._progress = ReadProgress()
        self._refitter.go_on_from(self._refitter.published, self._versions.best_model())
        self._watch = LiveAnswers()
        self._watch.recall(self._versions.base_measures)
        self._read_at = context.state / "labels-read"
        """Written whenever labels are read: how long were we away?"""
        self._unlearned = False
        """True while labels were, or may have been, taken in that no refit has seen: the buffer was not whole then."""
        self.name = f"tidemill-reward-{context.policy}-{featurizer.fingerprint[:12]}-{BUFFER_LAYOUT}"
        """Names group and table: other features, or another layout of entries, mean another table and all labels read again."""

    def deleted_meanwhile(self, stored: Collection[bytes]) -> list[bytes]:
        """Those of the stored episodes whose labels were deleted while we were away, perhaps for longer than Kafka keeps tombstones. They are to be
        deleted from the store before ``recover``. Raises Unavailable."""
        away_long, kafka, metrics = may_have_missed(self._read_at, self._context.clock.now()), self._context.kafka, self._context.metrics
        live = keys_on_log(kafka, LABELS, "reward", metrics) if stored and away_long else None
        gone = [] if live is None else [episode_id for episode_id in stored if episode_id.decode(errors="replace") not in live]
        if gone:
            log.info("entries whose labels were deleted meanwhile are dropped", entries=len(gone))
            self._unlearned = True
            self._refitter.absorb((), [episode_id.decode(errors="replace") for episode_id in gone])  # the next version is one after an erasure
        self._read_at.parent.mkdir(parents=True, exist_ok=True)
        self._read_at.touch()
        return gone

    def recover(self, stored: Sequence[bytes], held: int) -> bool:
        """Begin again from the stored entries, and go on from the newest version, whoever published it.

        ``held`` partitions of the labels are ours; returns whether that is all of them. What was taken in and never published becomes a version
        now, if the buffer is whole and nothing is left to read that would make one.
        """
        self._refitter.recover(stored)
        try:
            if self._versions.catch_up():
                self._refitter.go_on_from(self._versions.newest_model(), self._versions.best_model())
                self._watch.recall(self._versions.base_measures)
            log.info("buffer_recovered", labels=len(stored), version=self._versions.number, partitions=held)
            taken = {partition: end for (topic, partition), end in committed_offsets(self._context.kafka, self.name).items() if topic == LABELS.name}
            ends = end_offsets(self._context.kafka, LABELS, self._context.metrics)
        except Unavailable as error:
            log.warning("what others have taken in and published is not known: no version until Kafka says where the labels end", error=str(error))
            self._progress.begin({}, None)
            self._unlearned = True
            return held == self._context.kafka.partitions
        self._progress.begin(taken, ends)
        holds_all_labels = held == len(ends)
        self._unlearned = self._unlearned or self._progress.is_ahead_of(self._versions.newest_offsets)
        if self._unlearned and holds_all_labels and self._progress.caught_up:
            self._renew()
        return holds_all_labels

    def prepare(self, records: Sequence[Record]) -> Batch:
        """Decode, set aside what is bad (durably), compute features. Slow: on a thread of its own."""
        read, gone = labels_and_tombstones(records, self._label)
        if gone or any(label.erasures for label, *_ in read):
            self._featurizer.clear_cache()
        if unreadable := sum(is_unreadable(label) for label, *_ in read):
            self._context.metrics.add("tidemill_reward_left_out_total", unreadable, reason="media")
        places = {(record.partition, record.offset): record for record in records}
        made = self._entries(read, places)
        self._producer.flush()
        self._watch.remove(gone)
        entries: list[BufferEntry] = []
        for unseen, some in groupby(made, lambda pair: self._is_unseen(pair[0])):
            alike = [entry for _, entry in some]
            entries += self._refitter.predicted(alike) if unseen else alike
        return Batch(records, entries, gone)

    def _entries(self, read: Sequence[ReadLabel], places: Mapping[tuple[int, int], Record]) -> list[tuple[ReadLabel, BufferEntry]]:
        """The entries without predictions, of all labels at once. Where that failed, or ended the process before, one by one: then it shows which
        label is to blame, and that one is set aside."""
        if not self._in_hand.died_at(*TOGETHER):
            try:
                with self._in_hand.working_on(*TOGETHER, PART):
                    entries = self._refitter.prepare([each.label for each in read], unseen=False)
                    self._watch.add([each.label for each in read])
                    return list(zip(read, entries, strict=True))
            except InvalidEvent as error:
                log.info("labels are taken one by one", error=str(error))
        made = [(each, entry) for each in read if (entry := self._entry(each.label, places[each.partition, each.offset])) is not None]
        self._in_hand.forget(*TOGETHER)
        return made

    def _entry(self, label: Label, record: Record) -> BufferEntry | None:
        try:
            with self._in_hand.working_on(record.topic, record.partition, record.offset, PART):
                (entry,) = self._refitter.prepare([label], unseen=False)
                self._watch.add([label])
                return entry
        except InvalidEvent as error:
            self._dead.set_aside(record, error)
            return None

    def _is_unseen(self, read: ReadLabel) -> bool:
        """True when the published version was fitted without this label: a version's word on a label that it knows is no prediction."""
        return read.offset >= self._versions.newest_offsets.get(read.partition, 0)

    def _label(self, record: Record) -> Label | None:
        """A label of our policy; what cannot be read is set aside."""
        self._context.metrics.add("tidemill_consumed_total", topic=record.topic, part="reward")
        try:
            with self._in_hand.working_on(record.topic, record.partition, record.offset, PART):
                label = LABELS.decode(record.value)
        except InvalidEvent as error:
            self._dead.set_aside(record, error)
            return None
        return label if label.policy == self._context.policy else None

    def absorb(self, batch: Batch) -> dict[str, bytes | None]:
        """Into the buffer; returns what to store by episode, None to delete. Fast: where the store is."""
        return self._refitter.absorb(batch.entries, batch.gone)

    def finish(self, batch: Batch, holds_all_labels: bool) -> None:
        """The batch is stored: count it, refit, maybe publish, if the buffer is whole and we have caught up. Slow: on a thread of its own."""
        self._progress.note([(record.partition, record.offset) for record in batch.records])
        self._read_at.touch()
        self._context.metrics.add("tidemill_reward_labels_seen_total", len(batch.entries))
        if self._context.traces.enabled:
            self._versions.continue_traces([record.headers for record in batch.records])
        self._unlearned = self._unlearned or bool(batch.entries or batch.gone)
        if not self._unlearned:
            return
        if not holds_all_labels:
            log.warning("another updater holds some of the labels: no version until one of the two is gone")
            self._context.metrics.add("tidemill_reward_versions_total", result="shared")
        elif not self._has_caught_up():
            log.info("reading labels again: no version before all that were there at the start are read", left=self._progress.labels_left)
            self._context.metrics.add("tidemill_reward_versions_total", result="catching_up")
        else:
            self._renew()

    def _has_caught_up(self) -> bool:
        """Asks for the ends first where Kafka was away at the assignment."""
        if not self._progress.knows_ends:
            try:
                self._progress.begin({}, end_offsets(self._context.kafka, LABELS, self._context.metrics))
            except Unavailable as error:
                log.warning("where the labels end is not known: no version yet", error=str(error))
        return self._progress.caught_up

    def _renew(self) -> None:
        self._unlearned = False
        report(self._watch.findings(), self._context.metrics)
        self._versions.refit_and_publish(self._refitter, self._progress.offsets, self._watch)

    def close(self) -> None:
        """Hang up."""
        self._producer.close()
        self._in_hand.close()
