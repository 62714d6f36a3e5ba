"""The standing of adapters: candidate, shadow, canary, production, rejected or rolled back. A pure state machine: a fold of Promotion events.

::

    candidate ──gates──► shadow ──► canary ──► promoted ──► (the next one's turn)
        │                  │          │            │
        └──────────────► rejected ◄───┤            └──► rolled_back, for harm, by alarm or by hand: the production before it answers again
                                      └──► rolled_back, for harm

Every move is a Promotion event. All readers of the topic get the same AdapterStanding: an event that is not a legal move in the current state is void
for every reader. So two writers, a writer that is killed before it sees the acknowledgement, and an event that is sent twice do no harm.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from streams.core.events import Promotion

TIDEMILL = "tidemill"
"""The automatic promoter; it may not skip a stage."""
Stage = Literal["candidate", "shadow", "canary"]
BEFORE: Mapping[str, frozenset[str]] = {
    "shadow": frozenset({"candidate"}),
    "canary": frozenset({"shadow", "canary"}),
    "promoted": frozenset({"canary"}),
    "rejected": frozenset({"candidate", "shadow", "canary"}),
    "rolled_back": frozenset({"canary"}),
}
"""Stages from which a trial may make each move. Another ``canary`` changes its share, or says that it awaits approval. Another ``promoted`` for
production changes the share of conversations that it answers."""


@dataclass(frozen=True)
class PromotionMove:
    """A move to make, with its evidence."""

    move: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    canary_share: float | None = None
    awaits_approval: bool = False


@dataclass(frozen=True)
class Trial:
    """The one adapter that is being tried."""

    adapter: str
    stage: Stage
    since: datetime
    """When this stage began."""
    canary_share: float = 0.0
    """Part of the conversations that it answers, 0 to 1."""
    awaits_approval: bool = False
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Of the last move."""


@dataclass(frozen=True)
class AdapterStanding:
    """The standing of one policy's adapters."""

    policy: str
    production: str | None = None
    """The adapter that answers for the policy. None: the base."""
    since: datetime | None = None
    """When it was promoted. None when it came back through a roll-back."""
    share: float = 1.0
    """Part of the conversations that it answers. While it is new, the rest are held back on the production before it."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Of its promotion."""
    earlier: tuple[str | None, ...] = ()
    """Earlier productions, oldest first: possible rollback targets."""
    trial: Trial | None = None
    tried: Mapping[str, datetime] = field(default_factory=dict)
    """When each adapter was last made a candidate."""
    bad: frozenset[str] = frozenset()
    """Rejected or rolled back, and not made a candidate since."""
    seen: frozenset[str] = field(default=frozenset(), compare=False)
    """promotion_ids of all events, void ones too: an event that was void must not become a move when it is read again."""

    @property
    def previous(self) -> str | None:
        """The rollback target: the last earlier production that is not in ``bad``. None: the base."""
        return next((name for name in reversed(self.earlier) if name not in self.bad), None)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Adapters that every replica keeps loaded: production, the adapter on trial, and the rollback target."""
        names = (self.production, self.trial.adapter if self.trial else None, self.previous)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def refusal(self, event: Promotion) -> str | None:
        """Why this event is not a legal move now; None when it is one."""
        if event.policy != self.policy:
            return f"it is about the policy {event.policy}"
        if event.promotion_id in self.seen:
            return "it was seen before"
        if self.version(event.adapter) is None or self.version(event.adapter) == 0:
            return f"{event.adapter} is no adapter of {self.policy}"
        if event.move == "candidate":
            return self._no_candidate(event.adapter)
        if event.move == "rolled_back" and event.adapter == self.production:
            return self._no_return(event)
        if event.move == "promoted" and event.adapter == self.production:
            return self._no_other_share(event)
        if event.move == "promoted" and event.by != TIDEMILL:
            return None
        if self.trial is None or self.trial.adapter != event.adapter:
            return f"{event.adapter} is not being tried"
        if self.trial.stage not in BEFORE[event.move]:
            return f"{event.adapter} is in {self.trial.stage}, from where it cannot be {event.move}"
        if event.move == "canary" and self.trial.stage == "canary":
            changed = event.awaits_approval != self.trial.awaits_approval or event.canary_share not in (None, self.trial.canary_share)
            return None if changed else "it changes nothing"
        return None

    def after(self, event: Promotion) -> "AdapterStanding":
        """The standing after this event; unchanged when it is not a legal move."""
        if self.refusal(event) is not None:
            return replace(self, seen=self.seen | {event.promotion_id}) if event.policy == self.policy else self
        now = replace(self, seen=self.seen | {event.promotion_id})
        match event.move:
            case "candidate":
                trial = Trial(event.adapter, "candidate", event.at, evidence=event.evidence)
                return replace(now, trial=trial, tried={**self.tried, event.adapter: event.at}, bad=self.bad - {event.adapter})
            case "shadow":
                return replace(now, trial=Trial(event.adapter, "shadow", event.at, evidence=event.evidence))
            case "canary":
                return replace(now, trial=self._canary(event))
            case "promoted":
                return now._promoted(event)
            case "rejected":
                return replace(now, trial=None, bad=self.bad | {event.adapter})
            case "rolled_back":
                return now._back(event)

    def version(self, adapter: str | None) -> int | None:
        """The version in an adapter's name; 0 for the base (None). None when the name is not of this policy."""
        if adapter is None:
            return 0
        policy, at, number = adapter.rpartition("@")
        return int(number) if at and policy == self.policy and number.isascii() and number.isdigit() else None

    def _no_candidate(self, adapter: str) -> str | None:
        if self.trial is not None:
            return f"{self.trial.adapter} is being tried, one at a time"
        return "it is in production" if adapter == self.production else None

    def _no_other_share(self, event: Promotion) -> str | None:
        """Promoting production again only changes its share of the conversations."""
        if event.canary_share is None:
            return "it is in production"
        return "it changes nothing" if event.canary_share == self.share else None

    def _no_return(self, event: Promotion) -> str | None:
        if event.to is not None and (self.version(event.to) is None or event.to == self.production):
            return f"{event.to} is not a version of {self.policy} to go back to"
        return None

    def _canary(self, event: Promotion) -> Trial:
        """A changed canary keeps its start time."""
        trial = self.trial
        going_on = trial is not None and trial.stage == "canary"
        since = trial.since if trial is not None and going_on else event.at
        share = event.canary_share if event.canary_share is not None else trial.canary_share if trial is not None and going_on else 0.0
        return Trial(event.adapter, "canary", since, share, event.awaits_approval, event.evidence)

    def _promoted(self, event: Promotion) -> "AdapterStanding":
        """A new production, or the share that it answers from now on."""
        share = 1.0 if event.canary_share is None else event.canary_share
        if event.adapter == self.production:
            return replace(self, share=share)
        return replace(self, production=event.adapter, since=event.at, share=share, evidence=event.evidence, trial=None,
                       earlier=(*self.earlier, self.production), bad=self.bad - {event.adapter})  # fmt: skip

    def _back(self, event: Promotion) -> "AdapterStanding":
        """The adapter leaves canary or production. When production leaves, a trial ends too: it would have nothing to compare with."""
        now = replace(self, trial=None, bad=self.bad | {event.adapter})
        if event.adapter != self.production:
            return now
        to = now.previous if event.to is None else event.to if self.version(event.to) else None
        earlier = self.earlier
        if to in earlier:
            earlier = earlier[: len(earlier) - 1 - earlier[::-1].index(to)]
        return replace(now, production=to, since=None, share=1.0, evidence={}, earlier=earlier, bad=now.bad - {to} if to else now.bad)


def fold(policy: str, events: Iterable[Promotion]) -> AdapterStanding:
    """Where a policy's adapters stand after these events, oldest first."""
    standing = AdapterStanding(policy)
    for event in events:
        standing = standing.after(event)
    return standing
