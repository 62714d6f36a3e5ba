"""What another join wrote to our labels: one that Kafka took for dead, or that the network held up, may send old labels after newer ones.

Nothing can keep it from that, since Kafka's fences cost a transaction for each batch. So whoever owns a partition knows which offsets
of labels are its own, and looks at every other one: a label that has forgotten what the state knows is sent again as it stands, and one of
which the state knows nothing any more is rid of whoever is to be forgotten, as the erasure had done.
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
"""Most labels looked at in one turn, so that the loop comes round."""


def labels_to_repair(records: Iterable[Record], join: FeedbackJoin, forgotten: Forgotten, evidence: EvidenceSettings) -> dict[str, Label | None]:
    """What to send by episode, None where nothing may be left: where the newest in ``records`` lacks feedback, or an erasure, that we know of."""
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
    """What an erasure left of a label, of a higher rank than the same label before it; None where nothing is left."""
    if left.value is None:
        return None
    label = LABELS.decode(left.value)
    return label.model_copy(update={"erasures": label.erasures + 1})


def known_through(next_offset: int, ours: Iterable[int]) -> int:
    """How far labels are known, when they were known up to ``next_offset`` and we wrote ``ours``: no further than others wrote between."""
    offsets = sorted(ours)
    gapless = bool(offsets) and offsets[0] == next_offset and offsets[-1] - offsets[0] == len(offsets) - 1
    return offsets[-1] + 1 if gapless else next_offset


def _lacks_something(record: Record, ours: Label) -> bool:
    try:
        theirs = LABELS.decode(record.value)
    except InvalidEvent:
        return True
    return theirs.erasures < ours.erasures or not set(ours.feedback_ids) <= set(theirs.feedback_ids)
