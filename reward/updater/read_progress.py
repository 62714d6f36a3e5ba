"""How far the updater has read the labels, and whether that is as far as they went when it was given them. Pure.

An updater that starts without state (another layout of entries, other features, a lost table) reads all labels again, oldest first. Until it has
caught up, its buffer holds the *oldest* labels as if they were the newest, and a version fitted then is worse than the one it would replace.
"""

from collections.abc import Iterable, Mapping


class ReadProgress:
    """Next offset to read by partition, beside the ends of the partitions at the time of the assignment."""

    def __init__(self) -> None:
        self._read: dict[int, int] = {}
        self._ends: dict[int, int] | None = None

    @property
    def offsets(self) -> dict[int, int]:
        """Next offset of each partition of which something was read: what a version fitted now has seen, no more and no less."""
        return {partition: offset for partition, offset in sorted(self._read.items()) if offset}

    @property
    def knows_ends(self) -> bool:
        """True once the ends at the assignment are known."""
        return self._ends is not None

    @property
    def caught_up(self) -> bool:
        """True when everything that was there at the assignment has been read.

        The record at the last offset can always be read: Kafka never compacts the segment that it writes, and the labels are not written in
        transactions, whose markers take up offsets.
        """
        return self._ends is not None and not self.labels_left

    @property
    def labels_left(self) -> int:
        """Offsets between what was read and the ends at the assignment; some may have been compacted."""
        return sum(max(0, end - self._read.get(partition, 0)) for partition, end in (self._ends or {}).items())

    def begin(self, taken: Mapping[int, int], ends: Mapping[int, int] | None) -> None:
        """Partitions were assigned: ``taken`` are the offsets committed for what the store holds. ``ends`` None: not known yet."""
        for partition, offset in taken.items():
            self._read[partition] = max(self._read.get(partition, 0), offset)
        self._ends = None if ends is None else dict(ends)

    def note(self, places: Iterable[tuple[int, int]]) -> None:
        """These (partition, offset) were taken into the buffer."""
        for partition, offset in places:
            self._read[partition] = max(self._read.get(partition, 0), offset + 1)

    def is_ahead_of(self, offsets: Mapping[int, int]) -> bool:
        """True when something was read that lies beyond these offsets."""
        return any(offset > offsets.get(partition, 0) for partition, offset in self._read.items())
