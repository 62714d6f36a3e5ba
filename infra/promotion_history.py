"""The history of promotions as the log tells it, and a person's move written to it: what stands behind the commands."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from actor.promotion import TIDEMILL, Standing, fold
from infra.config import Settings
from streams.errors import ConfigError, InvalidEvent
from streams.events import AdapterVersion, Promotion, new_id
from streams.kafka import Producer, read_to_end
from streams.metrics import Metrics
from streams.topics import ADAPTERS, PROMOTIONS


@dataclass(frozen=True)
class TrialHistory:
    """One adapter's way, from candidate (or from a person's hand) to its end or to now."""

    adapter: str
    moves: tuple[Promotion, ...]

    @property
    def evidence(self) -> dict[str, Any]:
        """The newest that tells an uplift; without one the newest."""
        with_uplift = [move.evidence for move in self.moves if "uplift" in move.evidence]
        return dict(with_uplift[-1] if with_uplift else self.moves[-1].evidence)

    @property
    def labels_spent(self) -> int:
        """Labelled conversations that the canary took."""
        side = self.evidence.get("candidate")
        return int(side.get("labels", 0)) if isinstance(side, dict) else 0

    @property
    def seconds(self) -> float:
        """From its first move to its last."""
        return (self.moves[-1].at - self.moves[0].at).total_seconds()

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        last = self.moves[-1]
        uplift: dict[str, Any] = {key: self.evidence[key] for key in ("uplift", "low", "high") if key in self.evidence}
        return {"adapter": self.adapter, "moves": [move.move for move in self.moves], "reason": last.reason, "by": last.by, "at": last.at.isoformat(),
                "labels_spent": self.labels_spent, "seconds": self.seconds, **uplift}  # fmt: skip

    def as_text(self) -> str:
        """One line."""
        last, told = self.moves[-1], self.as_dict()
        uplift = f"  uplift {told['uplift']:+.3f} ({told['low']:+.3f} to {told['high']:+.3f}), {self.labels_spent} labels" if "low" in told else ""
        return f"{last.at:%Y-%m-%d %H:%M}  {self.adapter:<16} {last.move:<12}{uplift}  by {last.by}: {last.reason[:120]}"


def history(policy: str, events: Sequence[Promotion]) -> list[TrialHistory]:
    """Every trial, oldest first; moves that were void are left out, and a later roll-back of a production stands for itself."""
    standing = Standing(policy)
    ways: list[TrialHistory] = []
    for event in events:
        if standing.refusal(event) is not None:
            continue
        under_way = standing.trial is not None and standing.trial.adapter == event.adapter and ways
        standing = standing.after(event)
        if under_way:
            index = max(n for n, way in enumerate(ways) if way.adapter == event.adapter)
            ways[index] = TrialHistory(event.adapter, (*ways[index].moves, event))
        else:
            ways.append(TrialHistory(event.adapter, (event,)))
    return ways


def read_promotions(settings: Settings) -> list[Promotion]:
    """Every move of this policy on the log, oldest first."""
    return [event for event in _read(settings, PROMOTIONS) if event.policy == settings.policy.name]


def read_adapters(settings: Settings) -> list[AdapterVersion]:
    """Every adapter of this policy on the log."""
    return [event for event in _read(settings, ADAPTERS) if event.policy == settings.policy.name]


def _read(settings: Settings, topic: Any) -> list[Any]:
    found = []
    for record in read_to_end(settings.kafka, topic, "commands", Metrics()):
        try:
            found.append(topic.decode(record.value))
        except InvalidEvent:
            continue  # as every reader of the topic does
    return found


def write_move(settings: Settings, adapter: str, move: str, by: str, reason: str, **fields: Any) -> tuple[Standing, float]:
    """One event by a person, refused here with its reason where every reader would find it void. Where things stand then, and the seconds from
    the decision to the log's acknowledgement. Raises ConfigError."""
    if by == TIDEMILL:
        raise ConfigError(f"--by {by}: that is the machine's name; give your own")
    event = Promotion.model_validate({
        "promotion_id": new_id("pr"), "policy": settings.policy.name, "adapter": adapter, "move": move, "by": by, "reason": reason,
        "at": datetime.now(UTC), **fields,
    })  # fmt: skip
    if (refusal := fold(settings.policy.name, read_promotions(settings)).refusal(event)) is not None:
        raise ConfigError(f"{adapter} cannot be {move}: {refusal}")
    producer = Producer(settings.kafka, Metrics(), "tidemill-operator")
    try:
        began = time.monotonic()
        producer.publish(PROMOTIONS, event)
        took_s = time.monotonic() - began
    finally:
        producer.close()
    return fold(settings.policy.name, read_promotions(settings)), took_s


def standing_as_dict(standing: Standing, trials: Sequence[TrialHistory]) -> dict[str, Any]:
    """For ``--json``."""
    trial = standing.trial
    on_trial = None
    if trial is not None:
        on_trial = {"adapter": trial.adapter, "stage": trial.stage, "since": trial.since.isoformat(), "canary_share": trial.canary_share,
                    "awaits_approval": trial.awaits_approval, "evidence": dict(trial.evidence)}  # fmt: skip
    return {"production": standing.production, "previous": standing.previous, "trial": on_trial, "trials": [each.as_dict() for each in trials]}
