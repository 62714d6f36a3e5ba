"""The evidence for promotions, folded from the log event by event. Pure: reading the log again gives the same."""

import sys
from collections import OrderedDict, deque
from collections.abc import Sequence
from datetime import datetime

from actor.actor_client import PromptRequest
from actor.promotion.canary import CanaryVote, vote_of
from actor.promotion.confidence_sequence import Side
from actor.promotion.conversation_failures import ConversationFailures, asked_in
from actor.promotion.promotion_stages import AdapterStanding
from streams.core.events import AdapterVersion, Assignment, Attestation, Episode, Erasure, Event, Label, Outcome, Promotion, RewardModelVersion
from streams.erasure.forgotten_people import Forgotten

VOTES_KEPT = 200_000
DRIFT_LABELS = 200


class PromotionEvidence:
    """One policy's adapters, attestations, reward model, people's verdicts, recent episodes, and standing."""

    def __init__(self, policy: str, episodes_kept: int) -> None:
        self._policy = policy
        self.standing = AdapterStanding(policy)
        self.adapters: dict[str, AdapterVersion] = {}
        self.reward_model: RewardModelVersion | None = None
        self.episodes: deque[Episode] = deque(maxlen=episodes_kept)
        self._failures = ConversationFailures()
        """Outlives the episodes."""
        self._forgotten = Forgotten()
        self._attestations: dict[tuple[str, str], Attestation] = {}
        self._votes: OrderedDict[str, CanaryVote] = OrderedDict()
        self._recent_labels: OrderedDict[str, Label] = OrderedDict()

    def note(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case Promotion():
                self.standing = self.standing.after(event)
            case AdapterVersion() if event.policy == self._policy:
                self.adapters[event.name] = event
            case RewardModelVersion() if event.policy == self._policy:
                self.reward_model = event
            case Attestation() if event.adapter.rpartition("@")[0] == self._policy:
                self._attestations[event.replica, event.adapter] = event
            case Label() if event.policy == self._policy:
                self._take_label(event)
            case Episode() if event.policy == self._policy:
                self._failures.note(event)
                if not self._forgotten.covers_by_event_time(event.user_id, event.ended_at):
                    self.episodes.append(event)
            case Erasure():
                self._forgotten.add(event, 0)
                kept = [e for e in self.episodes if not self._forgotten.covers_by_event_time(e.user_id, e.ended_at)]
                self.episodes = deque(kept, self.episodes.maxlen)

    def remove_label(self, episode_id: str) -> None:
        """Remove the label of an episode."""
        self._votes.pop(episode_id, None)
        self._recent_labels.pop(episode_id, None)

    def failures(self, adapter: str | None, since: datetime, assignment: Assignment = "drawn") -> Side:
        """How many of the conversations that chance gave to an adapter failed, of all that began since the first whole minute then."""
        return self._failures.since(adapter, since, assignment)

    @property
    def attestations(self) -> list[Attestation]:
        """The newest attestation of each replica and adapter."""
        return list(self._attestations.values())

    @property
    def votes(self) -> list[CanaryVote]:
        """All current verdicts."""
        return list(self._votes.values())

    @property
    def recent_labels(self) -> list[Label]:
        """The newest labels with a verdict, oldest first."""
        return sorted(self._recent_labels.values(), key=lambda label: (label.newest_feedback_at, label.episode_id))

    def questions(self, count: int) -> list[PromptRequest]:
        """At most ``count`` different questions that people asked recently, newest first."""
        newest: dict[str, PromptRequest] = {}
        for episode in sorted(self.episodes, key=_age, reverse=True):
            if _usable(episode) and len(newest) < count:
                newest.setdefault(asked_in(episode), PromptRequest(episode.messages))
        return list(newest.values())

    def answered_since(self, since: datetime, adapter: str | None, count: int = sys.maxsize) -> Sequence[Episode]:
        """At most ``count`` of this adapter's answers to people since then, oldest first, one for each different question."""
        found: dict[str, Episode] = {}
        for episode in sorted(self.episodes, key=_age):
            good = episode.outcome in (Outcome.COMPLETED, Outcome.TRUNCATED)
            if good and episode.adapter == adapter and episode.started_at >= since and _usable(episode) and len(found) < count:
                found.setdefault(asked_in(episode), episode)
        return list(found.values())

    def _take_label(self, label: Label) -> None:
        """A label without a verdict removes the vote."""
        vote = vote_of(label)
        self._votes.pop(label.episode_id, None)
        self._recent_labels.pop(label.episode_id, None)
        if vote is None:
            return
        self._votes[label.episode_id], self._recent_labels[label.episode_id] = vote, label
        if len(self._votes) > VOTES_KEPT:
            self._votes.popitem(last=False)
        if len(self._recent_labels) > DRIFT_LABELS:
            oldest = min(self._recent_labels.values(), key=lambda each: (each.newest_feedback_at, each.episode_id))
            del self._recent_labels[oldest.episode_id]


def _age(episode: Episode) -> tuple[datetime, str]:
    return episode.started_at, episode.episode_id


def _usable(episode: Episode) -> bool:
    """True for a person's question in text. Questions that need tools cannot be asked again without running the tools; others are asked again as
    messages alone, under the base's own template."""
    plain = episode.render_fault is None and not (episode.tools or episode.tool_calls or episode.chat_template_kwargs)
    return bool(episode.messages) and episode.messages[-1].role == "user" and plain
