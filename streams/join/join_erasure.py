"""Erasure in one partition of the join: in its state, and in labels on the log whose state has long expired.

First the labels without the person are acknowledged, then the state is committed, then the erasure is reported on the log. A kill in between
repeats all of it, with the same result; the report may then count less than was removed.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta

from streams.core.events import Erased, Label
from streams.core.topics import ERASED, LABELS
from streams.erasure.erasure_follower import ErasureRequest
from streams.erasure.forgotten_people import Forgotten, record_without
from streams.join.feedback_join import FeedbackJoin
from streams.join.join_settings import EvidenceSettings
from streams.join.sqlite_state import EPOCH, PartitionState
from streams.join.stale_label_repair import raise_erasure_rank
from streams.kafka import Producer, Record


def erase_from_partition(
    store: PartitionState, join: FeedbackJoin, forgotten: Forgotten, on_the_log: Iterable[Record], evidence: EvidenceSettings
) -> "Removal":
    """Erase people from the partition's state and work out the labels without them. The state is changed but not yet committed."""
    removal = Removal()

    def covers(user_id: str | None, at: datetime, arrived_at: datetime) -> bool:
        return forgotten.covers(user_id, at, (arrived_at - EPOCH) // timedelta(milliseconds=1))

    for episode_id in store.find_where(forgotten.names):
        done = join.erase(episode_id, covers)
        removal.removed["episodes"] += done.episodes
        removal.removed["feedback"] += done.feedback
        if done.label is not None or done.label_gone:
            removal.labels[episode_id] = done.label
    for record in on_the_log:
        episode_id = (record.key or b"").decode(errors="replace")
        left = record_without(record, forgotten, evidence)
        if episode_id not in removal.labels and left is not record:
            removal.labels[episode_id] = raise_erasure_rank(left)
    removal.removed["labels"] = len(removal.labels)
    return removal


class Removal:
    """What an erasure removes from one partition."""

    def __init__(self) -> None:
        self.removed: Counter[str] = Counter(episodes=0, feedback=0)
        self.labels: dict[str, Label | None] = {}
        """By episode: the label without the erased people, or None when nothing is left of it."""

    def publish(self, producer: Producer) -> int | None:
        """Send the new labels and wait for their acknowledgements. Returns the offset after the last one; None without any."""
        waits = [producer.retract(LABELS, key) if label is None else producer.send(LABELS, label) for key, label in self.labels.items()]
        return max((wait().offset for wait in waits), default=-1) + 1 or None

    def report(self, asked: Iterable[ErasureRequest], partition: int, end: int | None, producer: Producer, now: datetime) -> None:
        """Report each erasure as done, on the log."""
        for each in asked:
            producer.publish(ERASED, Erased(
                person=each.erasure.person,
                part="join",
                where=f"partition {partition}",
                removed=dict(self.removed),
                offsets={LABELS.name: {partition: end}} if end else {},
                erasure_at=each.erasure.at,
                at=now,
            ))  # fmt: skip
