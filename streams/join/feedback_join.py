"""Joins feedback to its episode, whether it is late, early, changed, retracted or duplicated. Pure: no Kafka here.

A label is a fold over all feedback on its episode, so it depends neither on the order in which records arrive nor on how often. There are two
times. *Event time* (``Feedback.at``) decides which of two opinions is the newer one. *Arrival time* (the log's own timestamp of a record) decides
what came too late. It is the same however often the log is read, so folding the log again gives the same labels. For that, what becomes of a record
must not depend on when ``expire`` ran: an episode whose window has passed leaves a mark for as long as the log can hold its records.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from msgspec.structs import replace

from streams.core.errors import InvalidEvent
from streams.core.event_decoding import of_valid
from streams.core.events import Episode, Feedback, FeedbackKind, Label, Outcome, Vote
from streams.core.poison_records import blamed_on_record
from streams.join.episode_state import ArrivedFeedback, EpisodeState, KnownEpisode
from streams.join.feedback_channels import evidence_of, led_turns, newest_votes
from streams.join.join_settings import EvidenceSettings, JoinSettings

CENSORED = frozenset({Outcome.FAILED, Outcome.CANCELLED})
"""Outcomes that are no verdict on the answer: an infrastructure fault never counts against it."""
DEFAULT_EVIDENCE = EvidenceSettings()
LABEL_FIELDS, VOTE_FIELDS = set(Label.model_fields), set(Vote.model_fields)
REMEMBERED = timedelta(days=32)
"""Feedback is kept for 30 days, and goes with its segment of a day."""


Covers = Callable[[str | None, datetime, datetime], bool]
"""(user_id, event time, arrival time) -> must it be erased? See streams/erasure/forgotten_people.py."""


@dataclass(frozen=True)
class EpisodeErasure:
    """What was erased from an episode's state, and its label afterwards."""

    episodes: int = 0
    feedback: int = 0
    label: Label | None = None
    """The label without the erased person."""
    label_gone: bool = False
    """True when nothing is left of the label: one that may be on the log must be deleted there."""


class EpisodeStates(Protocol):
    """The join's state: by episode id, and by when it expires."""

    def get(self, episode_id: str, /) -> EpisodeState | None: ...
    def __setitem__(self, episode_id: str, standing: EpisodeState, /) -> None: ...
    def __delitem__(self, episode_id: str, /) -> None: ...
    def due(self, before: datetime) -> list[str]:
        """Episode ids whose ``expires_at`` is before that time."""


class StatesInMemory(dict[str, EpisodeState]):
    """The state as a dict. Satisfies EpisodeStates."""

    def due(self, before: datetime) -> list[str]:
        return [episode_id for episode_id, standing in self.items() if standing.expires_at < before]


@dataclass
class JoinTally:
    """Counts of what was folded since the last ``clear``."""

    joined: list[Feedback] = field(default_factory=list)
    duplicate_feedback: int = 0
    duplicate_episodes: int = 0

    def clear(self) -> None:
        """Start counting from 0."""
        self.joined.clear()
        self.duplicate_feedback = self.duplicate_episodes = 0


class FeedbackJoin:
    """Folds episodes and feedback into labels. ``set_aside`` receives feedback that cannot count; nothing is dropped silently."""

    def __init__(
        self,
        state: EpisodeStates,
        settings: JoinSettings,
        set_aside: Callable[[ArrivedFeedback, InvalidEvent], None],
        remembered: timedelta = REMEMBERED,
    ) -> None:
        """``remembered``: how long after an episode's arrival its mark is kept; as long as the log can hold a record about it."""
        self._state, self._window, self._most, self._set_aside = state, settings.window, settings.most_feedback, set_aside
        self._remembered = max(remembered, self._window)
        self._evidence = settings
        self.tally = JoinTally()

    def on_episode(self, episode: Episode, now: datetime) -> Label | None:
        """Fold an episode that arrived at ``now``. Returns its label if feedback was waiting for it."""
        standing = self._state.get(episode.episode_id)
        if standing is not None and (standing.known is not None or standing.closed is not None):
            if (standing.closed or _digest(standing.known)) != _digest(episode):
                why = "another episode of this id was there first: an answer from a cache, or an id that is used twice"
                raise InvalidEvent("id_taken", f"episode {episode.episode_id}: {why}")
            self.tally.duplicate_episodes += 1
            return None
        known = KnownEpisode(
            policy=episode.policy,
            tenant=episode.tenant,
            user_id=episode.user_id,
            conversation_id=episode.conversation_id,
            adapter=episode.adapter,
            assignment=episode.assignment,
            outcome=episode.outcome,
            messages=episode.messages,
            tools=episode.tools,
            chat_template_kwargs=episode.chat_template_kwargs,
            unrenderable=episode.render_fault,
            answer=episode.answer,
            tool_calls=episode.tool_calls,
            ended_at=episode.ended_at,
        )
        waiting, erasures = (standing.feedback, standing.erasures) if standing is not None else ((), 0)
        in_time = _each_once(arrived for arrived in waiting if not self._too_late(arrived, known, now))
        self.tally.duplicate_feedback += len(waiting) - len({arrived.feedback.feedback_id for arrived in waiting})
        standing = EpisodeState(known=known, feedback=in_time, expires_at=now + self._window, erasures=erasures)
        try:
            with blamed_on_record("joining"):
                label = self._label(episode.episode_id, standing)  # first: a record that makes this fail must leave no trace
        except InvalidEvent:
            in_time = self._usable(episode.episode_id, standing)
            standing = replace(standing, feedback=in_time)
            label = self._label(episode.episode_id, standing)
        self._state[episode.episode_id] = standing
        self.tally.joined += [arrived.feedback for arrived in in_time]
        return label

    def on_feedback(self, feedback: Feedback, now: datetime, offset: int = -1) -> Label | None:
        """Fold feedback that arrived at ``now``. Returns the episode's new label; None when nothing changed or the episode has not arrived."""
        if feedback.at > now:  # nobody gave it after it came: a clock that is ahead must not outlive a later change of mind
            feedback = feedback.model_copy(update={"at": now})
        standing = self._state.get(feedback.episode_id)
        arrived = ArrivedFeedback(feedback=feedback, at=now, offset=offset)
        if standing is None:
            self._state[feedback.episode_id] = EpisodeState(feedback=(arrived,), expires_at=now + self._window)
            return None
        if standing.closed is not None:
            self._expire(arrived, "the window of its episode had passed when it arrived")
            return None
        if standing.known is not None and feedback.feedback_id in (*standing.superseded, *(each.feedback.feedback_id for each in standing.feedback)):
            self.tally.duplicate_feedback += 1
            return None
        if standing.known is not None and self._too_late(arrived, standing.known, standing.expires_at - self._window):
            return None
        if len(standing.feedback) >= self._most:
            why = f"episode {feedback.episode_id} has {self._most} feedback events already (join.most_feedback)"
            self._set_aside(arrived, InvalidEvent("too_many", f"feedback {feedback.feedback_id}: {why}"))
            return None
        standing = replace(standing, feedback=(*standing.feedback, arrived))
        label = self._label(feedback.episode_id, standing)
        self._state[feedback.episode_id] = standing
        if standing.known is not None:
            self.tally.joined.append(feedback)
        return label

    def _usable(self, episode_id: str, standing: EpisodeState) -> tuple[ArrivedFeedback, ...]:
        """The feedback of which a label can be made. The rest is set aside: it waited for its episode, which is not to blame."""
        usable: list[ArrivedFeedback] = []
        for arrived in standing.feedback:
            try:
                with blamed_on_record("joining"):
                    self._label(episode_id, replace(standing, feedback=(*usable, arrived)))
                usable.append(arrived)
            except InvalidEvent as error:
                self._set_aside(arrived, error)
        return tuple(usable)

    def leave_out(self, episode_id: str) -> ArrivedFeedback | None:
        """Take feedback out of an episode whose label cannot be published: what was joined since the last ``clear``, else any; the longest first."""
        standing = self._state.get(episode_id)
        if standing is None or not standing.feedback:
            return None
        new = {feedback.feedback_id for feedback in self.tally.joined}
        out = max(standing.feedback, key=lambda each: (each.feedback.feedback_id in new, len(each.feedback.text or "")))
        self._state[episode_id] = replace(standing, feedback=tuple(each for each in standing.feedback if each is not out))
        self.tally.joined = [feedback for feedback in self.tally.joined if feedback.feedback_id != out.feedback.feedback_id]
        return out

    def erase(self, episode_id: str, covers: Covers) -> EpisodeErasure:
        """Erase from an episode what ``covers`` says: all of it when its own person is erased, otherwise that person's feedback."""
        standing = self._state.get(episode_id)
        if standing is None:
            return EpisodeErasure()
        known, window = standing.known, self._window
        if known is not None and covers(known.user_id, known.ended_at, standing.expires_at - window):
            del self._state[episode_id]
            return EpisodeErasure(episodes=1, feedback=len(standing.feedback), label_gone=bool(standing.feedback))
        kept = tuple(each for each in standing.feedback if not covers(each.feedback.user_id, each.feedback.at, each.at))
        if (removed := len(standing.feedback) - len(kept)) == 0:
            return EpisodeErasure()
        if known is None and not kept:
            del self._state[episode_id]
            return EpisodeErasure(feedback=removed)
        standing = replace(standing, feedback=kept, erasures=standing.erasures + 1)
        self._state[episode_id] = standing
        label = self._label(episode_id, standing)
        return EpisodeErasure(feedback=removed, label=label, label_gone=known is not None and label is None)

    def label(self, episode_id: str) -> Label | None:
        """The episode's current label; None while the episode or all feedback is missing."""
        standing = self._state.get(episode_id)
        return None if standing is None else self._label(episode_id, standing)

    def _label(self, episode_id: str, standing: EpisodeState) -> Label | None:
        """The current label; None while the episode or all feedback is missing."""
        if standing.known is None or not standing.feedback:
            return None
        label = label_of(episode_id, standing.known, [each.feedback for each in standing.feedback], self._evidence)
        if standing.erasures or standing.superseded:
            update = {"erasures": standing.erasures, "superseded": (*standing.superseded, *label.superseded)}
            return label.model_copy(update=update)
        return label

    def expire(self, now: datetime) -> int:
        """Close episodes older than the window, and drop old marks; feedback whose episode never arrived expires. Returns how many states changed.

        ``now`` must be the watermark: a time that the arrivals of *both* inputs have passed. With the time of the faster input, the slower one
        would lose records that it has yet to deliver.
        """
        due = self._state.due(now)
        for episode_id in due:
            standing = self._state.get(episode_id)
            if standing is None:
                continue
            if standing.known is not None:
                until = standing.expires_at - self._window + self._remembered
                self._state[episode_id] = EpisodeState(closed=_digest(standing.known), expires_at=until)
                continue
            if standing.closed is None:
                kept = []
                for arrived in standing.feedback:
                    if arrived.at + self._window < now:
                        self._expire(arrived, f"no episode {episode_id} came")
                    else:
                        kept.append(arrived)
                if kept:
                    expires_at = min(arrived.at for arrived in kept) + self._window
                    self._state[episode_id] = replace(standing, feedback=tuple(kept), expires_at=expires_at)
                    continue
            del self._state[episode_id]
        return len(due)

    def _too_late(self, arrived: ArrivedFeedback, known: KnownEpisode, episode_arrived_at: datetime) -> bool:
        """True when feedback and episode are more than a window apart, in event time or in arrival time. The feedback is then set aside."""
        if arrived.feedback.at - known.ended_at > self._window:
            self._expire(arrived, "it was given too long after its episode ended")
        elif abs(arrived.at - episode_arrived_at) > self._window:
            self._expire(arrived, "it and its episode arrived too far apart")
        else:
            return False
        return True

    def _expire(self, arrived: ArrivedFeedback, why: str) -> None:
        days = self._window / timedelta(days=1)
        self._set_aside(arrived, InvalidEvent("expired", f"feedback {arrived.feedback.feedback_id}: {why} (join.window_days = {days:g})"))


def _each_once(waiting: Iterable[ArrivedFeedback]) -> tuple[ArrivedFeedback, ...]:
    """The first of each feedback_id."""
    found: dict[str, ArrivedFeedback] = {}
    for arrived in waiting:
        found.setdefault(arrived.feedback.feedback_id, arrived)
    return tuple(found.values())


def _digest(episode: Episode | KnownEpisode | None) -> str:
    """Of who asked, what was asked and what was answered: equal for one answer that was sent twice."""
    if episode is None:
        return ""
    said = (episode.user_id, episode.tenant, episode.answer, [(m.role, m.text) for m in episode.messages])
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def label_of(episode_id: str, known: KnownEpisode, feedback: Iterable[Feedback], settings: EvidenceSettings = DEFAULT_EVIDENCE) -> Label:
    """The label that follows from this (distinct, not empty) feedback, in whatever order it is given.

    For each person the newest feedback of a kind replaces the older (ties go to the greater feedback_id); then retractions apply. What was
    replaced stays replaced: a person who said good, then bad, then retracted the bad, has no opinion.
    """
    everything = sorted(feedback, key=_age)
    retracted = {(each.user_id, each.retracts) for each in everything if each.kind is FeedbackKind.RETRACTION}
    newest = {_subject(each): each for each in everything if each.kind is not FeedbackKind.RETRACTION}
    counted = [each for each in sorted(newest.values(), key=_age) if (each.user_id, each.feedback_id) not in retracted]
    votes = tuple(_vote(each) for each in counted)
    ids = {each.feedback_id for each in counted}
    censored = known.outcome in CENSORED
    verdict = None if censored else verdict_of(votes)
    return of_valid(Label, {
        "schema_version": 1,
        "episode_id": episode_id,
        "policy": known.policy,
        "tenant": known.tenant,
        "user_id": known.user_id,
        "conversation_id": known.conversation_id,
        "adapter": known.adapter,
        "assignment": known.assignment,
        "outcome": known.outcome,
        "messages": known.messages,
        "tools": known.tools,
        "chat_template_kwargs": known.chat_template_kwargs,
        "unrenderable": known.unrenderable,
        "answer": known.answer,
        "tool_calls": known.tool_calls,
        "verdict": verdict,
        "led_by": () if verdict is None else led_turns(known.messages, settings.turn_discount),
        "votes": votes,
        "evidence": () if censored else evidence_of(votes, settings),
        "superseded": tuple(each.feedback_id for each in everything if each.feedback_id not in ids),
        "erasures": 0,
        "episode_at": known.ended_at,
        "first_feedback_at": everything[0].at,
        "newest_feedback_at": everything[-1].at,
    }, LABEL_FIELDS)  # fmt: skip


def verdict_of(votes: Iterable[Vote]) -> float | None:
    """Mean over people of each one's newest thumb or rating. ``votes`` are sorted oldest first. None when there is no such vote."""
    values = sorted(vote.value for vote in newest_votes(votes).values() if vote.value is not None)
    return sum(values) / len(values) if values else None


def _age(feedback: Feedback) -> tuple[datetime, str]:
    return feedback.at, feedback.feedback_id


def _subject(feedback: Feedback) -> tuple[str, str, str | None]:
    """What newer feedback of the same person replaces: a thumb any thumb, but a comparison only one with the same other episode."""
    return feedback.user_id, feedback.kind.value, feedback.over or feedback.signal


def _vote(feedback: Feedback) -> Vote:
    value = None
    if feedback.thumb is not None:
        value = 1.0 if feedback.thumb == "up" else 0.0
    elif feedback.rating is not None:
        value = (feedback.rating - 1) / 4
    return of_valid(Vote, {
        "feedback_id": feedback.feedback_id,
        "user_id": feedback.user_id,
        "kind": feedback.kind,
        "value": value,
        "text": feedback.text,
        "over": feedback.over,
        "signal": feedback.signal,
        "at": feedback.at,
    }, VOTE_FIELDS)  # fmt: skip
