"""Feedback by channel: the verdict of each channel on an episode, and its weight. Pure.

A *channel* is a way in which people, their tools or a critic judge an answer: thumbs, ratings, comparisons, corrections, implicit signals (what
people do), outcomes (what tools report), critic. The label keeps the channels apart, each with its weight, so that one can see what counted.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from streams.core.event_decoding import of_valid
from streams.core.events import Channel, Evidence, FeedbackKind, LedTurn, Message, Vote
from streams.join.join_settings import EvidenceSettings

LEAST_CREDIT = 0.05
"""Answers that a verdict would reach with less weight than this are left out, for each costs a pass of the reward model's backbone."""
MOST_LED = 8
"""Most earlier answers that a verdict reaches."""
EVIDENCE_FIELDS = set(Evidence.model_fields)
Said = tuple[Channel, float | None, float, Sequence[Vote]]
"""A channel's verdict, its weight before the channel's own, and the votes that it comes from."""


def newest_votes(votes: Iterable[Vote]) -> dict[str, Vote]:
    """Each person's newest thumb or rating: one vote per person. ``votes`` are sorted oldest first."""
    return {vote.user_id: vote for vote in votes if vote.value is not None}


def evidence_of(votes: Sequence[Vote], settings: EvidenceSettings) -> tuple[Evidence, ...]:
    """The channels with a verdict, in the order of ``Channel``. ``votes`` are sorted oldest first.

    Thumbs and ratings share one weight by the number of people, so that an episode counts as one label however many people voted.
    """
    spoken = newest_votes(votes).values()
    kinds = {vote.kind for vote in votes}
    found: list[Said] = []
    for channel, kind in ((Channel.THUMBS, FeedbackKind.THUMB), (Channel.RATINGS, FeedbackKind.RATING)):
        if kind in kinds and (given := [v for v in spoken if v.kind is kind]):
            values = sorted(v.value for v in given if v.value is not None)
            found.append((channel, sum(values) / len(values), len(values) / len(spoken), given))
    for channel, kind in ((Channel.COMPARISONS, FeedbackKind.COMPARISON), (Channel.CORRECTIONS, FeedbackKind.CORRECTION)):
        if kind in kinds:
            found.append((channel, None, 1.0, [v for v in votes if v.kind is kind]))
    if FeedbackKind.SIGNAL in kinds:
        found += _of_signals(Channel.IMPLICIT, votes, settings.implicit, newest_only=False)
        found += _of_signals(Channel.OUTCOMES, votes, settings.outcomes, newest_only=True)
        found += _of_signals(Channel.CRITIC, votes, settings.critic, newest_only=True)
    return tuple(_evidence(*each, settings.channels[each[0]]) for each in found if each[2] * settings.channels[each[0]] > 0)


def led_turns(messages: Sequence[Message], discount: float) -> tuple[LedTurn, ...]:
    """The answers in a conversation's messages that led to the one after them, nearest first; each weighs ``discount`` times the one after it."""
    found: list[LedTurn] = []
    for place in range(len(messages) - 1, 0, -1):
        if messages[place].role == "assistant" and len(found) < MOST_LED and (weight := discount ** (len(found) + 1)) >= LEAST_CREDIT:
            found.append(LedTurn(message=place, weight=weight))
    return tuple(found)


def _evidence(channel: Channel, value: float | None, weight: float, votes: Sequence[Vote], weight_of_channel: float) -> Evidence:
    made = {"channel": channel, "value": value, "weight": weight * weight_of_channel, "feedback_ids": _ids(votes)}
    return of_valid(Evidence, made, EVIDENCE_FIELDS)


def _of_signals(channel: Channel, votes: Sequence[Vote], says: Mapping[str, float], newest_only: bool) -> list[Said]:
    """Each person's good and bad signals are added up; the weight is the absolute sum, averaged over the people."""
    declared = [v for v in votes if v.signal is not None and v.signal in says]
    by_person: dict[str, list[Vote]] = defaultdict(list)
    for vote in declared:
        by_person[vote.user_id] = [vote] if newest_only else [*by_person[vote.user_id], vote]
    counted = [vote for spoken in by_person.values() for vote in spoken]
    opinions = sorted(max(-1.0, min(1.0, sum(says[v.signal] for v in spoken if v.signal))) for spoken in by_person.values())
    strength = sum(abs(o) for o in opinions)
    if not strength:
        return []
    good = sum(o for o in opinions if o > 0)
    return [(channel, good / strength, strength / len(opinions), counted)]


def _ids(votes: Iterable[Vote]) -> tuple[str, ...]:
    return tuple(sorted(vote.feedback_id for vote in votes))
