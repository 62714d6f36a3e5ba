"""The canary's decision: people's verdicts on candidate and production, one per conversation, since the canary began. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from actor.promotion.confidence_sequence import Prior, Side, Uplift, uplift
from actor.promotion.promotion_settings import PromotionSettings
from streams.core.events import ANONYMOUS, Assignment, Label
from streams.join.feedback_channels import newest_votes

DRAWN: frozenset[Assignment] = frozenset({"drawn"})
HELD_BACK: frozenset[Assignment] = frozenset({"held_back"})
MOST_OF_ONE_PERSON = 5
"""Most conversations of one person that count on one side."""
PRIOR_LABELS = 20.0
"""Weight, in labels, of the prior for both sides, which is production's mean verdict before the canary."""


@dataclass(frozen=True)
class CanaryVote:
    """The fields of a label that a comparison needs."""

    episode_id: str
    adapter: str | None
    unit: str
    """The conversation, or otherwise the person and how their conversation began. Votes of one unit are not independent."""
    verdict: float
    episode_at: datetime
    first_feedback_at: datetime
    assignment: Assignment | None = None
    asker: str | None = None
    """Who asked, where that is known."""
    voices: tuple[tuple[str, float], ...] = ()
    """The newest thumb or rating of each person, as 0 to 1."""


def vote_of(label: Label) -> CanaryVote | None:
    """The vote in a label. None when it has no verdict."""
    if label.verdict is None:
        return None
    if label.conversation_id is not None:
        unit = f"conversation {label.conversation_id}"
    else:
        first = next((message.text for message in label.messages if message.role == "user"), "")
        unit = f"user {label.votes[0].user_id if label.votes else ''} {first}"
    voices = tuple((giver, vote.value) for giver, vote in newest_votes(label.votes).items() if vote.value is not None)
    voices = voices or ((ANONYMOUS, label.verdict),)
    return CanaryVote(label.episode_id, label.adapter, unit, label.verdict, label.episode_at, label.first_feedback_at, label.assignment,
                      label.user_id, voices)  # fmt: skip


def side_of(votes: Iterable[CanaryVote], adapter: str | None, since: datetime | None = None, until: datetime | None = None,
            drawn: frozenset[Assignment] = DRAWN, most: int = MOST_OF_ONE_PERSON) -> Side:  # fmt: skip
    """The first vote of each unit on this adapter's answers that ended within that time and were assigned by chance.

    A person counts in at most ``most`` units, by the order of their votes, whether they asked or judged: who talks a lot, or judges everybody's
    conversations, moves little. Nameless people are many.
    """
    first: dict[str, CanaryVote] = {}
    for vote in votes:
        if (
            vote.adapter != adapter
            or vote.assignment not in drawn
            or (since is not None and vote.episode_at < since)
            or (until is not None and vote.episode_at >= until)
        ):
            continue
        known = first.get(vote.unit)
        if known is None or (vote.first_feedback_at, vote.episode_id) < (known.first_feedback_at, known.episode_id):
            first[vote.unit] = vote
    side, spoken = Side(), Counter[str]()
    for vote in sorted(first.values(), key=lambda each: (each.first_feedback_at, each.episode_id)):
        heard = [(giver, value) for giver, value in vote.voices if giver == ANONYMOUS or spoken[giver] < most]
        if not heard or (vote.asker is not None and spoken[vote.asker] >= most):
            continue
        spoken.update({name for name in (vote.asker or ANONYMOUS, *(giver for giver, _ in heard)) if name != ANONYMOUS})
        side = side.with_verdict(sum(value for _, value in heard) / len(heard))
    return side


def prior_of(votes: Iterable[CanaryVote], production: str | None, until: datetime) -> Prior:
    """The prior for both sides, from verdicts on production before the canary began."""
    side = side_of(votes, production, until=until)
    return Prior(side.mean, PRIOR_LABELS) if side.labels >= PRIOR_LABELS else Prior()


def prior_in(evidence: Mapping[str, Any]) -> Prior:
    """The prior that was recorded when the canary began; without one, an uninformative prior."""
    told = evidence.get("prior")
    if not isinstance(told, Mapping):
        return Prior()
    mean, weight = told.get("mean"), told.get("weight")
    good = isinstance(mean, int | float) and isinstance(weight, int | float) and 0 <= mean <= 1 and weight > 0
    return Prior(float(mean), float(weight)) if good else Prior()  # type: ignore[arg-type]


@dataclass(frozen=True)
class Shown:
    """A new adapter compared with the one that it replaces."""

    surely: Uplift
    """Difference of the mean verdicts, at ``promotion.alpha``."""
    harm: str | None
    """Why the new adapter must go; None while no harm is shown."""
    said: str
    evidence: dict[str, Any]


def compare(newcomer: Side, incumbent: Side, failures: tuple[Side, Side], prior: Prior, settings: PromotionSettings) -> Shown:
    """Compare verdicts and failed conversations of both sides (new, old). Valid at any time, however often it is called.

    Harm may be shown by verdicts or by failures, so each has half of ``harm_alpha``.
    """
    surely, maybe = uplift(newcomer, incumbent, settings.alpha, prior), uplift(newcomer, incumbent, settings.harm_alpha / 2, prior)
    failing = uplift(*failures, settings.harm_alpha / 2)
    told = {
        "uplift": round(surely.estimate, 4), "low": round(surely.low, 4), "high": round(surely.high, 4), "alpha": settings.alpha,
        "harm_high": round(maybe.high, 4), "harm_alpha": settings.harm_alpha, "prior": asdict(prior),
        "candidate": {"labels": newcomer.labels, "mean": round(newcomer.mean, 4), "answers": failures[0].labels, "failed": failures[0].total},
        "production": {"labels": incumbent.labels, "mean": round(incumbent.mean, 4), "answers": failures[1].labels, "failed": failures[1].total},
    }  # fmt: skip
    said = f"uplift {surely.estimate:+.3f} ({surely.low:+.3f} to {surely.high:+.3f}) over {newcomer.labels} labelled conversations"
    harm = f"people like it less: {said}" if maybe.high < 0 else None
    if harm is None and failing.low > 0:
        harm = f"{failures[0].mean:.1%} of its conversations fail, {failures[1].mean:.1%} of production's"
    return Shown(surely, harm, said, told)


@dataclass(frozen=True)
class Decision:
    """The canary's result so far. ``move`` is None while it is undecided."""

    move: Literal["promoted", "rejected", "rolled_back"] | None
    reason: str
    evidence: dict[str, Any]


def decide(candidate: Side, production: Side, failures: tuple[Side, Side], prior: Prior, hours: float, settings: PromotionSettings) -> Decision:
    """Decide: harm rolls back at any moment; better with enough labels promotes; undecided at the limit of labels or time rejects.

    ``failures`` are those of candidate and production, ``hours`` since the canary began.
    """
    shown = compare(candidate, production, failures, prior, settings)
    told = {**shown.evidence, "hours": round(hours, 3)}
    if shown.harm is not None:
        return Decision("rolled_back", shown.harm, told)
    if candidate.labels >= settings.min_canary_labels and shown.surely.low > settings.min_uplift:
        return Decision("promoted", f"people like it better: {shown.said}", told)
    if candidate.labels >= settings.max_canary_labels or hours >= settings.max_canary_h:
        return Decision("rejected", f"not shown to be better within its exposure: {shown.said}", told)
    return Decision(None, shown.said, told)
