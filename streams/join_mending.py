"""What another join wrote to our labels: one that Kafka took for dead, or that the network held up, may send old labels after newer ones.

Nothing can keep it from that, since Kafka's fences cost a transaction for each batch. So whoever owns a partition knows which offsets
of labels are its own, and looks at every other one: a label that has forgotten what the state knows is sent again as it stands.
"""

from collections.abc import Iterable

from streams.errors import InvalidEvent
from streams.events import Label
from streams.join import FeedbackJoin
from streams.kafka import Record
from streams.topics import LABELS

LOOKED_AT = 20_000
"""Most labels looked at in one turn, so that the loop comes round."""


def forgetful(records: Iterable[Record], join: FeedbackJoin) -> list[Label]:
    """The labels to send again: of each episode in ``records`` whose newest there lacks feedback, or an erasure, that the state has."""
    found: dict[str, Label | None] = {}
    for record in records:
        episode_id = (record.key or b"").decode(errors="replace")
        found[episode_id] = _mended(record, join.label(episode_id))
    return [label for label in found.values() if label is not None]


def after(next_offset: int, ours: Iterable[int]) -> int:
    """How far labels are known, when they were known up to ``next_offset`` and we wrote ``ours``: no further than others wrote between."""
    offsets = sorted(ours)
    gapless = bool(offsets) and offsets[0] == next_offset and offsets[-1] - offsets[0] == len(offsets) - 1
    return offsets[-1] + 1 if gapless else next_offset


def _mended(record: Record, ours: Label | None) -> Label | None:
    """Ours, when theirs knows less."""
    if ours is None:
        return None
    try:
        theirs = LABELS.decode(record.value)
    except InvalidEvent:
        return ours
    knows_less = theirs.erasures < ours.erasures or not set(ours.feedback_ids) <= set(theirs.feedback_ids)
    return ours if knows_less else None
