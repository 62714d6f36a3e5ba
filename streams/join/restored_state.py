"""An episode's state from its label, where the log no longer has the records that the label was made of. Pure: no Kafka here.

A join that takes over with an old disk or an empty one folds the log again. What retention has deleted meanwhile is missing from that, but the labels
topic keeps every label for ever: without it, the next feedback would make a label of itself alone, and what people had said before would be gone.
"""

from datetime import datetime, timedelta

from streams.core.events import Feedback, FeedbackKind, Label, Vote
from streams.join.episode_state import ArrivedFeedback, EpisodeState, KnownEpisode

OF_A_LABEL = frozenset(KnownEpisode.__struct_fields__) - {"ended_at"}


def state_from_label(standing: EpisodeState | None, label: Label, window: timedelta, oldest: datetime) -> EpisodeState | None:
    """What the state must be so that it knows all that the label knows; None where it does already, or the episode ended before ``oldest``.

    When the episode arrived is not in its label: it counts as arrived when it ended, or when its oldest record that is left did.
    """
    standing = standing or EpisodeState(expires_at=label.episode_at + window)
    named = set(label.feedback_ids)
    lacking = named - {each.feedback.feedback_id for each in standing.feedback} - set(standing.superseded)
    if standing.closed is not None or (standing.known is not None and not lacking) or label.episode_at < oldest:
        return None
    arrived_at = min(label.episode_at, standing.expires_at - window)
    spoken = [ArrivedFeedback(feedback=_feedback(vote, label.episode_id), at=vote.at) for vote in label.votes if vote.feedback_id in lacking]
    kept = [each for each in standing.feedback if each.feedback.feedback_id in named or each.at - arrived_at <= window]
    return EpisodeState(
        known=standing.known or KnownEpisode(**{name: getattr(label, name) for name in OF_A_LABEL}, ended_at=label.episode_at),
        feedback=(*spoken, *kept),
        superseded=(*standing.superseded, *(name for name in label.superseded if name in lacking)),
        expires_at=arrived_at + window,
        erasures=max(label.erasures, standing.erasures),
    )


def _feedback(vote: Vote, episode_id: str) -> Feedback:
    """The feedback that became this vote."""
    return Feedback(
        feedback_id=vote.feedback_id,
        episode_id=episode_id,
        user_id=vote.user_id,
        kind=vote.kind,
        thumb=("up" if vote.value else "down") if vote.kind is FeedbackKind.THUMB else None,
        rating=round((vote.value or 0) * 4) + 1 if vote.kind is FeedbackKind.RATING else None,
        text=vote.text,
        over=vote.over,
        signal=vote.signal,
        at=vote.at,
    )
