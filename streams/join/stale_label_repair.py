"""Repairs stale labels: a join member that Kafka believed dead, or that the network delayed, may write old labels after newer ones.

Kafka could only prevent this (fencing) by a transaction for each batch, with which a single thumb waits many times as long
(docs/results/streams.md). Instead, the owner of a partition knows which offsets of the labels topic it wrote itself, and reads all others: a label
that lacks feedback which the state has is sent again from the state. A label whose state has expired is only freed of erased people, as the erasure
had done before.
"""

from collections.abc import Iterable

from streams.core.errors import InvalidEvent
from streams.core.events import Label
from streams.core.topics import LABELS
from streams.erasure.forgotten_people import Forgotten, record_without
from streams.join.feedback_join import FeedbackJoin
from streams.join.join_settings import EvidenceSettings
from streams.kafka import Record

MOST_READ = 20_000
"""Most labels read in one turn, so that the loop stays responsive."""


def labels_to_repair(records: Iterable[Record], join: FeedbackJoin, forgotten: Forgotten, evidence: EvidenceSettings) -> dict[str, Label | None]:
    """Labels to send, by episode, where the newest in ``records`` lacks feedback or an erasure that the state has. None: delete the label."""
    found: dict[str, Label | None] = {}
    for record in records:
        episode_id = (record.key or b"").decode(errors="replace")
        found.pop(episode_id, None)
        if (ours := join.label(episode_id)) is not None:
            if _lacks_something(record, ours):
                found[episode_id] = ours
        elif (left := record_without(record, forgotten, evidence)) is not record:
            found[episode_id] = raise_erasure_rank(left)
    return found


def raise_erasure_rank(left: Record) -> Label | None:
    """The label that an erasure left over, with one more erasure than before, so that it wins over the older one. None: nothing is left."""
    if left.value is None:
        return None
    label = LABELS.decode(left.value)
    return label.model_copy(update={"erasures": label.erasures + 1})


def known_through(next_offset: int, ours: Iterable[int]) -> int:
    """The offset up to which all labels are known to us: ``next_offset``, or the end of ``ours`` when nobody wrote in between."""
    offsets = sorted(ours)
    gapless = bool(offsets) and offsets[0] == next_offset and offsets[-1] - offsets[0] == len(offsets) - 1
    return offsets[-1] + 1 if gapless else next_offset


def _lacks_something(record: Record, ours: Label) -> bool:
    try:
        theirs = LABELS.decode(record.value)
    except InvalidEvent:
        return True
    return theirs.erasures < ours.erasures or not set(ours.feedback_ids) <= set(theirs.feedback_ids)
