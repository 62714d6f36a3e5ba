"""Feedback by channel: the verdict of each channel on an episode, and its weight. Pure.

A *channel* is a way in which people, their tools or a critic judge an answer: thumbs, ratings, comparisons, corrections, implicit signals (what
people do), outcomes (what tools report), critic. The label keeps the channels apart, each with its weight, so that one can see what counted.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from streams.core.events import Channel, Evidence, FeedbackKind, LedTurn, Message, Vote
from streams.join.join_settings import EvidenceSettings

LEAST_CREDIT = 0.05
"""Answers that a verdict would reach with less weight than this are left out, for each costs a pass of the reward model's backbone."""
MOST_LED = 8
"""Most earlier answers that a verdict reaches."""


def newest_votes(votes: Iterable[Vote]) -> dict[str, Vote]:
    """Each person's newest thumb or rating: one vote per person. ``votes`` are sorted oldest first."""
    return {vote.user_id: vote for vote in votes if vote.value is not None}


def evidence_of(votes: Sequence[Vote], settings: EvidenceSettings) -> tuple[Evidence, ...]:
    """The channels with a verdict, in the order of ``Channel``. ``votes`` are sorted oldest first.

    Thumbs and ratings share one weight by the number of people, so that an episode counts as one label however many people voted.
    """
    spoken = newest_votes(votes).values()
    thumbs = [v for v in spoken if v.kind is FeedbackKind.THUMB]
    ratings = [v for v in spoken if v.kind is FeedbackKind.RATING]
    found = [
        _of_people(Channel.THUMBS, thumbs, len(thumbs) / max(1, len(spoken))),
        _of_people(Channel.RATINGS, ratings, len(ratings) / max(1, len(spoken))),
        _of_words(Channel.COMPARISONS, [v for v in votes if v.kind is FeedbackKind.COMPARISON]),
        _of_words(Channel.CORRECTIONS, [v for v in votes if v.kind is FeedbackKind.CORRECTION]),
        _of_signals(Channel.IMPLICIT, votes, settings.implicit, newest_only=False),
        _of_signals(Channel.OUTCOMES, votes, settings.outcomes, newest_only=True),
        _of_signals(Channel.CRITIC, votes, settings.critic, newest_only=True),
    ]
    weighed = [e.model_copy(update={"weight": e.weight * settings.channels[e.channel]}) for e in found if e is not None]
    return tuple(e for e in weighed if e.weight > 0)


def led_turns(messages: Sequence[Message], discount: float) -> tuple[LedTurn, ...]:
    """The answers in a conversation's messages that led to the one after them, nearest first; each weighs ``discount`` times the one after it."""
    found: list[LedTurn] = []
    for place in range(len(messages) - 1, 0, -1):
        if messages[place].role == "assistant" and len(found) < MOST_LED and (weight := discount ** (len(found) + 1)) >= LEAST_CREDIT:
            found.append(LedTurn(message=place, weight=weight))
    return tuple(found)


def _of_people(channel: Channel, votes: Sequence[Vote], share: float) -> Evidence | None:
    values = sorted(v.value for v in votes if v.value is not None)
    return Evidence(channel=channel, value=sum(values) / len(values), weight=share, feedback_ids=_ids(votes)) if values else None


def _of_words(channel: Channel, votes: Sequence[Vote]) -> Evidence | None:
    return Evidence(channel=channel, weight=1.0, feedback_ids=_ids(votes)) if votes else None


def _of_signals(channel: Channel, votes: Sequence[Vote], says: Mapping[str, float], newest_only: bool) -> Evidence | None:
    """Each person's good and bad signals are added up; the weight is the absolute sum, averaged over the people."""
    declared = [v for v in votes if v.signal is not None and v.signal in says]
    by_person: dict[str, list[Vote]] = defaultdict(list)
    for vote in declared:
        by_person[vote.user_id] = [vote] if newest_only else [*by_person[vote.user_id], vote]
    counted = [vote for spoken in by_person.values() for vote in spoken]
    opinions = sorted(max(-1.0, min(1.0, sum(says[v.signal] for v in spoken if v.signal))) for spoken in by_person.values())
    strength = sum(abs(o) for o in opinions)
    if not strength:
        return None
    good = sum(o for o in opinions if o > 0)
    return Evidence(channel=channel, value=good / strength, weight=strength / len(opinions), feedback_ids=_ids(counted))


def _ids(votes: Iterable[Vote]) -> tuple[str, ...]:
    return tuple(sorted(vote.feedback_id for vote in votes))
