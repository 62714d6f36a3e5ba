"""Carries out erasures in the join: in its state, and in labels whose episodes it no longer holds.

Those are found by one pass over the labels. Ten million of them take minutes to read, so each of the join's turns reads a portion, and the join goes
on folding meanwhile.
"""

from collections.abc import Iterable

from streams.core.part_context import PartContext
from streams.core.topics import LABELS
from streams.erasure.erasure_follower import ErasureFollower
from streams.erasure.forgotten_people import Forgotten
from streams.join.partition_processor import PartitionProcessor
from streams.kafka import Consumer, Producer, Record

POLLS = 10
"""Polls in a turn."""
POLL_RECORDS = 5000
POLL_S = 0.05


class PeopleEraser:
    """Follows the erasures, and carries them out in the partitions that it is given. Not thread-safe."""

    def __init__(self, erasures: ErasureFollower, context: PartContext) -> None:
        self._erasures, self._context = erasures, context
        self._scan: LabelScan | None = None

    @property
    def is_scanning(self) -> bool:
        """True while a pass over the labels is under way."""
        return self._scan is not None

    def turn(self, parts: Iterable[PartitionProcessor], producer: Producer) -> None:
        """Read new erasures, and a portion of the labels where one is due. ``parts`` have nothing uncommitted. Raises Unavailable."""
        self._erasures.poll()
        if not (due := [part for part in parts if part.erasures_due]):
            return
        self._scan = self._scan or LabelScan(self._erasures.forgotten, self._erasures.end, self._context)
        if self._scan.go_on():
            for part in due:
                part.erase_people(self._scan.found.get(part.number, {}).values(), self._scan.erasures_end, producer)
            self.drop_scan()

    def drop_scan(self) -> None:
        """The pass is done, or another member may have written anew what it has read."""
        if self._scan is not None:
            self._scan.close()
        self._scan = None


class LabelScan:
    """One pass. ``found``, by partition and episode: the newest label, where it names a person whose erasure was known when it was read."""

    def __init__(self, forgotten: Forgotten, erasures_end: int, context: PartContext) -> None:
        """``erasures_end``: offset after the last erasure in ``forgotten``; later ones need a pass of their own. Raises Unavailable."""
        self.erasures_end, self.found = erasures_end, dict[int, dict[str, Record]]()
        self._forgotten = forgotten
        self._consumer = Consumer(context.kafka, [LABELS], "join", context.metrics)
        self._ends: dict[tuple[str, int], int] = {}

    def go_on(self) -> bool:
        """Read a portion. True when everything is read that was on the topic a moment ago: partitions that only the caller writes to are read to
        their ends. Raises Unavailable."""
        asked = False
        for _ in range(POLLS):
            positions = self._consumer.positions()
            if all(positions[place] >= end for place, end in self._ends.items()):
                if asked:
                    return True
                self._ends, asked = {place: end for place, (first, end) in self._consumer.bounds(positions).items() if first < end}, True
                continue
            for record in self._consumer.poll(POLL_S, POLL_RECORDS):
                self._take(record)
        return False

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def _take(self, record: Record) -> None:
        episode_id, partition = (record.key or b"").decode(errors="replace"), self.found.setdefault(record.partition, {})
        partition.pop(episode_id, None)
        if self._forgotten.names(record.value):
            partition[episode_id] = record
