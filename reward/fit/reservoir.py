"""Which labels a full buffer keeps. Change this file to change that. Pure, deterministic: a function of the entries in the order in which they came.

Entries of a kind (people's labels, hints, words without a verdict, withdrawn labels) share a room. When it is full, one entry goes:

1. the oldest label of whoever holds more than their share of the room, if anybody does. So one person displaces at most their share of what others
   said, however much they say. Among fewer people than 1 / share, everybody has an equal part;
2. otherwise the oldest of the verdict that holds more than half, so that both verdicts stay known; the oldest of all where there are no verdicts.

Labels without a name are many people's, nobody knows how many: together they count as one with half of the room.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime

from reward.fit.buffer_entry import BufferEntry

STRATA = ("good", "bad", "hint good", "hint bad", "words", "withdrawn")
NAMELESS_SHARE = 0.5
FULL = 0.9
"""Part of the room from which labels may have had to go: some may have been withdrawn since."""
_NAMELESS = ""
"""Whom a label without a name is counted for."""


class Reservoir:
    """The entries of one partition, in rooms by kind."""

    def __init__(self, room: int, person_share: float) -> None:
        """``room``: people's labels. Hints are many; they have half as much room of their own, so that they never displace what people said."""
        self._person_share = person_share
        self._rooms = {"": room, "hint": max(2, room // 2), "words": room, "withdrawn": room}
        self._entries: dict[str, dict[str, BufferEntry]] = {stratum: {} for stratum in STRATA}
        self._held: dict[str, Counter[str]] = {kind: Counter() for kind in self._rooms}
        self._strata: dict[str, str] = {}

    def add(self, entry: BufferEntry) -> Iterator[str]:
        """Take an entry in, in place of the episode's former one. Returns the episodes that had to go for it."""
        self.remove(entry.episode_id)
        stratum = entry.stratum
        kind = kind_of(stratum)
        self._entries[stratum][entry.episode_id] = entry
        self._held[kind].update(_sole_voter(entry))
        self._strata[entry.episode_id] = stratum
        while sum(map(len, self._of_kind(kind))) > self._rooms[kind]:
            gone = self._least_wanted(kind).episode_id
            self.remove(gone)
            yield gone

    def remove(self, episode_id: str) -> None:
        """Remove an episode's entry, if there is one."""
        if (stratum := self._strata.pop(episode_id, None)) is not None:
            self._held[kind_of(stratum)] -= Counter(_sole_voter(self._entries[stratum].pop(episode_id)))

    def complete_since(self, kind: str) -> datetime | None:
        """The time since which no label of this kind had to go for its verdict; None: none had to go."""
        strata = self._of_kind(kind)
        if sum(map(len, strata)) < FULL * self._rooms[kind]:
            return None
        return max((_oldest(entries.values()).newest_feedback_at for entries in strata if entries), default=None)

    def _least_wanted(self, kind: str) -> BufferEntry:
        strata, room = self._of_kind(kind), self._rooms[kind]
        if (greedy := beyond_their_share(self._held[kind], room, self._person_share)) is not None:
            return _oldest(entry for entries in strata for entry in entries.values() if _sole_voter(entry) == (greedy,))
        if len(strata) == 1:
            return _oldest(strata[0].values())
        good, bad = strata
        return _oldest((good if len(good) > room - min(len(bad), room - room // 2) else bad).values())

    def _of_kind(self, kind: str) -> list[dict[str, BufferEntry]]:
        return [entries for stratum, entries in self._entries.items() if kind_of(stratum) == kind]


def kind_of(stratum: str) -> str:
    """The kind of an entry by its stratum: entries of one kind share a room."""
    return stratum.removesuffix("good").removesuffix("bad").strip()


def beyond_their_share(held: Counter[str], room: int, person_share: float) -> str | None:
    """Who alone gave the most labels, when that is more than their share of the room; None otherwise. ``held``: labels by their only voter. Labels of
    several people are nobody's: one of them must not be able to have the others' displaced."""
    most = max(held, key=lambda voter: (held[voter] / _share(voter, held, person_share), voter), default=None)
    return most if most is not None and held[most] > max(1.0, _share(most, held, person_share) * room) else None


def _share(voter: str, held: Counter[str], person_share: float) -> float:
    if voter == _NAMELESS:
        return 1.0 if len(held) == 1 else NAMELESS_SHARE
    return max(person_share, 1 / len(held))


def _sole_voter(entry: BufferEntry) -> tuple[str, ...]:
    """Whom the entry is counted for: nobody, or one."""
    if entry.nameless:
        return (_NAMELESS,)
    return entry.voters if len(entry.voters) == 1 else ()


def _oldest(entries: Iterable[BufferEntry]) -> BufferEntry:
    return min(entries, key=lambda entry: entry.age)
