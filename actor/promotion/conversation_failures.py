"""Counts the conversations that chance gave to each adapter, and how many of them failed. Pure: the same episodes give the same counts.

A side (an adapter and how it was assigned) is asked about at every look of the promoter, so its counts are kept by minute and by day: a look adds up
at most a day of minutes, and the days since, however many conversations there were.
"""

import json
from collections import OrderedDict
from datetime import datetime
from hashlib import sha256

from actor.promotion.confidence_sequence import Side
from streams.core.events import Assignment, Episode, Outcome

CONVERSATIONS_KEPT = 200_000
RETRY_MINUTES = 10
"""The same question that fails again within this time is a retry, in whatever conversation."""
MINUTES_A_DAY = 1440

SideKey = tuple[str | None, Assignment | None]


class MinuteCounts:
    """Conversations and failed conversations by the minute in which they began."""

    def __init__(self) -> None:
        self._minutes: dict[int, tuple[int, int]] = {}
        self._days: dict[int, tuple[int, int]] = {}

    def add(self, minute: int, conversations: int, failed: int) -> None:
        """Add to a minute's counts, or with negative numbers take away."""
        for counts, place in ((self._minutes, minute), (self._days, minute // MINUTES_A_DAY)):
            known, known_failed = counts.get(place, (0, 0))
            counts[place] = (known + conversations, known_failed + failed)
            if not counts[place][0]:
                del counts[place]

    def since(self, minute: int) -> Side:
        """All that began in this minute or later."""
        day = minute // MINUTES_A_DAY
        whole = [counts for each, counts in self._days.items() if each > day]
        within = [self._minutes[each] for each in range(minute, (day + 1) * MINUTES_A_DAY) if each in self._minutes]
        return Side(sum(count for count, _ in whole + within), float(sum(failed for _, failed in whole + within)))


class ConversationFailures:
    """Bounded: beyond ``kept`` conversations, the first that were noted are forgotten."""

    def __init__(self, kept: int = CONVERSATIONS_KEPT) -> None:
        self._kept = kept
        self._conversations: OrderedDict[tuple[SideKey, bytes], tuple[int, bool]] = OrderedDict()
        """By side and conversation (a hash), the minute of its first answer and whether one failed."""
        self._counts: dict[SideKey, MinuteCounts] = {}
        self._failed: OrderedDict[tuple[str | None, bytes], int] = OrderedDict()
        """By adapter and question (a hash), the minute in which it last failed."""

    def note(self, episode: Episode) -> None:
        """Count an episode's conversation, if chance chose its adapter."""
        if episode.assignment not in ("drawn", "held_back"):
            return
        minute, failed = int(episode.started_at.timestamp() // 60), episode.outcome is Outcome.FAILED
        if failed and self._is_retry(episode, minute):
            return
        unit = f"conversation {episode.conversation_id}" if episode.conversation_id else f"user {episode.user_id} {asked_in(episode)}"
        side, conversation = (episode.adapter, episode.assignment), _hashed(episode.tenant, unit)
        known = self._conversations.get((side, conversation))
        first, had_failed = known or (minute, False)
        now = (min(first, minute), had_failed or failed)
        self._conversations[side, conversation] = now
        counts = self._counts.setdefault(side, MinuteCounts())
        if known is not None:
            counts.add(first, -1, -had_failed)
        counts.add(now[0], 1, now[1])
        if len(self._conversations) > self._kept:
            (gone, _), (began, had_failed) = self._conversations.popitem(last=False)
            self._counts[gone].add(began, -1, -had_failed)

    def since(self, adapter: str | None, since: datetime, assignment: Assignment = "drawn") -> Side:
        """How many of the conversations that chance gave to an adapter failed, of all that began since the first whole minute then.

        A conversation fails once, however often its answers fail or are asked for again. A window that slid along would have to be looked at anew
        for ever, and one day show something by chance.
        """
        counts = self._counts.get((adapter, assignment))
        return counts.since(-int(-since.timestamp() // 60)) if counts is not None else Side()

    def _is_retry(self, episode: Episode, minute: int) -> bool:
        """Whether the same person's same question failed just before. A failed answer begins no conversation that a client could go on with, so
        each retry of a client that names none seems to be a new one."""
        key = (episode.adapter, _hashed(episode.tenant, f"{episode.user_id} {asked_in(episode)}"))
        before = self._failed.pop(key, None)
        self._failed[key] = minute
        if len(self._failed) > self._kept:
            self._failed.popitem(last=False)
        return before is not None and abs(minute - before) <= RETRY_MINUTES


def asked_in(episode: Episode) -> str:
    """What was asked, as one text: equal for equal questions."""
    return json.dumps([(message.role, message.text) for message in episode.messages])


def _hashed(*parts: str) -> bytes:
    return sha256(json.dumps(parts).encode(errors="replace")).digest()[:12]
