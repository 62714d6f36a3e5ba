"""Detects broken arrows of the ring: something went in, and nothing came out.

It compares counts of requests and of records on the topics. Each arrow has a time limit, so that a slow machine does not count as broken.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from infra.operate.log_watch import LogFacts
from infra.settings.config import Settings
from infra.simulated_people.simulated_talk import TalkTally
from reward.fit.label_evidence import good_and_bad, lacking
from streams.core.errors import Unavailable
from streams.core.metrics import Metrics
from streams.core.topics import EPISODES, FEEDBACK, Topic
from streams.kafka import end_offsets

PATIENCE_S = 300.0
"""Time limit from the first input to the first output. On one busy core, parts need some minutes to start."""
STEP_PATIENCE_S, STEPS_WAITED = 900.0, 8.0
"""Time limit for the learner's first adapter: at least the first number, and the second number times the predicted step."""
LOST_RATIO = 0.05
"""Share of requests, or of thumbs, that may fail: an overloaded machine has timeouts."""

LOOK_EVERY_S = 15.0
"""Seconds between two checks; each asks Kafka for the ends of topics."""


@dataclass(frozen=True)
class RingArrow:
    """One arrow: how much went in, since when, and how much came out."""

    name: str
    into: str
    """What goes in, for the message."""
    entered: int
    for_s: float
    """Seconds since the first input; 0 before it."""
    out_of: str
    """What should come out, for the message."""
    left: int
    part: str
    """The part whose log to read."""
    patience_s: float = PATIENCE_S

    @property
    def broken(self) -> bool:
        """True when the first input is older than the time limit and nothing has come out."""
        return self.entered > 0 and self.left == 0 and self.for_s > self.patience_s

    def __str__(self) -> str:
        return f"the arrow {self.name} is broken: {self.entered} {self.into}, the first {self.for_s:.0f} s ago, and no {self.out_of}"


@dataclass(frozen=True)
class RingCounts:
    """How much has passed each point of the ring."""

    questions: int = 0
    """Requests by people, answered or not."""
    answers: int = 0
    episodes: int = 0
    thumbs: int = 0
    """Thumbs that the actor accepted."""
    feedback: int = 0
    labels: int = 0
    enough_labels: int = 0
    """The number of labels once they suffice for a reward model; 0 before."""
    reward_models: int = 0
    adapters: int = 0
    attestations: int = 0
    """Adapters that a replica has attested or refused."""
    attested: int = 0
    adapter_answers: int = 0
    """Answers that people got from an adapter."""


class ArrowWatch:
    """Records when each point of the ring was first passed. ``now_s`` comes from any monotonic clock."""

    def __init__(self, predicted_step_s: float | None = None) -> None:
        self._since_s: dict[str, float] = {}
        self._step_patience_s = max(STEP_PATIENCE_S, STEPS_WAITED * (predicted_step_s or 0.0))

    def arrows(self, counts: RingCounts, now_s: float) -> tuple[RingArrow, ...]:
        """All arrows, in the order of the data flow."""
        for place, count in vars(counts).items():
            if count:
                self._since_s.setdefault(place, now_s)

        def arrow(name: str, place: str, into: str, to: str, out_of: str, part: str, patience_s: float = PATIENCE_S) -> RingArrow:
            for_s = now_s - self._since_s.get(place, now_s)
            return RingArrow(name, into, getattr(counts, place), for_s, out_of, getattr(counts, to), part, patience_s)

        return (
            arrow("people → actor", "questions", "questions were asked", "answers", "answer came", "actor"),
            arrow("actor → episodes", "answers", "answers were given", "episodes", "episode was published", "actor"),
            arrow("people → feedback", "thumbs", "thumbs were taken", "feedback", "feedback was published", "actor"),
            arrow("episodes, feedback → labels", "feedback", "thumbs were published", "labels", "label", "streams"),
            arrow("labels → reward-models", "enough_labels", "labels were published", "reward_models", "reward model", "reward"),
            arrow(
                "reward-models → adapters", "reward_models", "reward models were published", "adapters", "adapter", "learner", self._step_patience_s
            ),
            arrow("adapters → attestations", "adapters", "adapters were published", "attestations", "attestation", "actor"),
            arrow("attestations → answers", "attested", "adapters were attested", "adapter_answers", "answer by an adapter", "actor"),
        )

    def broken(self, counts: RingCounts, now_s: float) -> RingArrow | None:
        """The first broken arrow in the order of the data flow; None if all work."""
        return next((arrow for arrow in self.arrows(counts, now_s) if arrow.broken), None)


def all_refused(attested: int, refused: Sequence[str], patience: int = 3) -> str | None:
    """A sentence when replicas refused every adapter and at least ``patience`` of them. ``refused``: the reasons, oldest first."""
    if attested or len(refused) < patience:
        return None
    return f"the arrow adapters → attestations is broken: replicas refused all {len(refused)} adapters, the last because it {refused[-1]}"


def lost(what: str, lost_count: int, of: int, example: str = "") -> str | None:
    """A sentence when more than ``LOST_RATIO`` of what people sent was lost."""
    if lost_count <= LOST_RATIO * of:
        return None
    return f"the arrow {what} is broken: {lost_count} of {of} did not arrive" + (f", such as {example}" if example else "")


class RingFlow:
    """Checks the log regularly for broken arrows."""

    def __init__(self, settings: Settings, watch: ArrowWatch) -> None:
        self._settings, self._watch = settings, watch
        self._looked_s = float("-inf")
        self._metrics = Metrics()

    def broken(self, facts: LogFacts, tally: TalkTally) -> RingArrow | None:
        """The first broken arrow; None if all work, or if the last check is too recent."""
        now_s = time.monotonic()
        if now_s < self._looked_s + LOOK_EVERY_S:
            return None
        self._looked_s = now_s
        try:
            published = {topic.short_name: self._published(topic) for topic in (EPISODES, FEEDBACK)}
        except Unavailable:  # the ring itself restarts its broker
            return None
        return self._watch.broken(self._counts(facts, tally, published), now_s)

    def _published(self, topic: Topic) -> int:  # type: ignore[type-arg]
        return sum(end_offsets(self._settings.kafka, topic, self._metrics).values())

    def _counts(self, facts: LogFacts, tally: TalkTally, published: dict[str, int]) -> RingCounts:
        good, bad = good_and_bad(list(facts.labels.values()))
        told = list(facts.attestations)
        return RingCounts(
            questions=tally.asked,
            answers=tally.answers,
            episodes=published["episodes"],
            thumbs=tally.thumbs,
            feedback=published["feedback"],
            labels=len(facts.labels),
            enough_labels=0 if lacking(good, bad, self._settings.reward) else good + bad,
            reward_models=len(facts.reward_models),
            adapters=len(facts.adapters),
            attestations=len(told),
            attested=len({each.adapter for each in told if each.passed}),
            adapter_answers=tally.adapter_answers,
        )
