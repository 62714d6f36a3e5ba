"""Which labels a full buffer keeps. Change this file to change that. Pure, deterministic: a function of the entries in the order in which they came.

Entries of a kind (people's labels, hints, words without a verdict, withdrawn labels) share a room. When it is full, one entry goes:

1. the oldest label of whoever holds more than their share of the room, if anybody does. So one person displaces at most their share of what others
   said, however much they say. Among fewer people than 1 / share, everybody has an equal part;
2. otherwise the oldest of the verdict that holds more than half, so that both verdicts stay known; the oldest of all where there are no verdicts.

Labels without a name are many people's, nobody knows how many: together they count as one with half of the room.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from reward.fit.buffer_entry import BufferEntry

STRATA = ("good", "bad", "hint good", "hint bad", "words", "withdrawn")
NAMELESS_SHARE = 0.5
_NAMELESS = ""
"""Whom a label without a name is counted for."""


class Reservoir:
    """The entries of one partition, in rooms by kind."""

    def __init__(self, room: int, person_share: float) -> None:
        """``room``: people's labels. Hints are many; they have half as much room of their own, so that they never displace what people said."""
        self._person_share = person_share
        self._rooms = {"": room, "hint": max(2, room // 2), "words": room, "withdrawn": room}
        self._entries: dict[str, dict[str, BufferEntry]] = {kind: {} for kind in self._rooms}
        self._kinds: dict[str, str] = {}

    def add(self, entry: BufferEntry) -> Iterator[str]:
        """Take an entry in, in place of the episode's former one. Returns the episodes that had to go for it."""
        self.remove(entry.episode_id)
        kind = kind_of(entry.stratum)
        self._entries[kind][entry.episode_id] = entry
        self._kinds[entry.episode_id] = kind
        while len(self._entries[kind]) > self._rooms[kind]:
            gone = self._least_wanted(kind).episode_id
            self.remove(gone)
            yield gone

    def remove(self, episode_id: str) -> None:
        """Remove an episode's entry, if there is one."""
        if (kind := self._kinds.pop(episode_id, None)) is not None:
            del self._entries[kind][episode_id]

    def _least_wanted(self, kind: str) -> BufferEntry:
        entries, room = self._entries[kind].values(), self._rooms[kind]
        if (greedy := beyond_their_share(entries, room, self._person_share)) is not None:
            return _oldest(entry for entry in entries if _sole_voter(entry) == greedy)
        good = [entry for entry in entries if entry.stratum.endswith("good")]
        bad = [entry for entry in entries if entry.stratum.endswith("bad")]
        return _oldest(good if len(good) > room - min(len(bad), room - room // 2) else bad or entries)


def kind_of(stratum: str) -> str:
    """The kind of an entry by its stratum: entries of one kind share a room."""
    return stratum.removesuffix("good").removesuffix("bad").strip()


def beyond_their_share(entries: Iterable[BufferEntry], room: int, person_share: float) -> str | None:
    """Who alone gave the most of these labels, when that is more than their share of the room; None otherwise. Labels of several people are
    nobody's: one of them must not be able to have the others' displaced."""
    held = Counter(voter for entry in entries if (voter := _sole_voter(entry)) is not None)
    most = max(held, key=lambda voter: (held[voter] / _share(voter, held, person_share), voter), default=None)
    return most if most is not None and held[most] > max(1.0, _share(most, held, person_share) * room) else None


def _share(voter: str, held: Counter[str], person_share: float) -> float:
    if voter == _NAMELESS:
        return 1.0 if len(held) == 1 else NAMELESS_SHARE
    return max(person_share, 1 / len(held))


def _sole_voter(entry: BufferEntry) -> str | None:
    if entry.nameless:
        return _NAMELESS
    return entry.voters[0] if len(entry.voters) == 1 else None


def _oldest(entries: Iterable[BufferEntry]) -> BufferEntry:
    return min(entries, key=lambda entry: entry.age)
