"""What a label says of its answer, and whether the labels are enough for a first reward model. Needs no torch: status and console ask it too."""

from collections.abc import Iterable

from reward.settings import RewardSettings
from streams.core.events import Channel, Evidence, FeedbackKind, Label
from streams.join.feedback_channels import voices

Said = tuple[str, float, float]
"""(channel, value, weight) of a channel that says how good an answer is."""


def said_of(label: Label) -> tuple[tuple[Said, ...], dict[str, float]]:
    """What says how good the answer is, and the weight of each channel. Labels of before channels were told are thumbs and words of weight 1."""
    if label.evidence is None:
        rated = any(v.kind is FeedbackKind.RATING for v in voices(label.votes).values())
        channel = Channel.RATINGS if rated and all(v.kind is FeedbackKind.RATING for v in voices(label.votes).values()) else Channel.THUMBS
        bare = (Evidence(channel=channel, value=label.verdict, weight=1.0),) if label.verdict is not None else ()
        return _valued(bare), {Channel.CORRECTIONS: 1.0, Channel.COMPARISONS: 1.0}
    return _valued(label.evidence), {e.channel: e.weight for e in label.evidence}


def verdict_in(said: Iterable[Said]) -> float | None:
    """Mean of what the channels say by their weights; None when nothing says how good the answer is."""
    said = tuple(said)
    total = sum(weight for _, _, weight in said)
    return sum(value * weight for _, value, weight in said) / total if total else None


def is_good(verdict: float) -> bool:
    """Where good begins."""
    return verdict >= 0.5


def good_and_bad(labels: Iterable[Label]) -> tuple[int, int]:
    """How many labels find their answer good, and how many bad; those without a verdict are neither."""
    verdicts = [verdict for label in labels if (verdict := verdict_in(said_of(label)[0])) is not None]
    good = sum(map(is_good, verdicts))
    return good, len(verdicts) - good


def lacking(good: int, bad: int, settings: RewardSettings) -> list[str]:
    """What a first reward model still needs, such as ``9 of 16 labels``; nothing when it has enough."""
    s = settings
    counts = {"labels": (good + bad, s.min_labels), "thumbs up": (good, s.min_each_verdict), "thumbs down": (bad, s.min_each_verdict)}
    return [f"{have} of {needed} {what}" for what, (have, needed) in counts.items() if have < needed]


def _valued(evidence: Iterable[Evidence]) -> tuple[Said, ...]:
    return tuple((str(e.channel), e.value, e.weight) for e in evidence if e.value is not None)
