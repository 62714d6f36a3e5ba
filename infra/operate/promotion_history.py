"""The history of promotions from the log, and writing an operator's promotion: the work of the promotion commands."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from actor.promotion.promotion_stages import TIDEMILL, AdapterStanding, fold
from infra.settings.config import Settings
from streams.core.errors import ConfigError, InvalidEvent
from streams.core.events import AdapterVersion, Promotion, new_id
from streams.core.metrics import Metrics
from streams.core.topics import ADAPTERS, PROMOTIONS
from streams.kafka import Producer, read_to_end


@dataclass(frozen=True)
class TrialHistory:
    """One trial of an adapter, from its first move (by the promoter or an operator) to its last so far."""

    adapter: str
    moves: tuple[Promotion, ...]
    learned_s: float = 0.0
    """Device-seconds of training since the production adapter of that time, as far as the adapters record them."""

    @property
    def evidence(self) -> dict[str, Any]:
        """Evidence of the newest move with an uplift; without one, of the newest move."""
        with_uplift = [move.evidence for move in self.moves if "uplift" in move.evidence]
        return dict(with_uplift[-1] if with_uplift else self.moves[-1].evidence)

    @property
    def labels_spent(self) -> int:
        """Labelled conversations that the canary used."""
        side = self.evidence.get("candidate")
        return int(side.get("labels", 0)) if isinstance(side, dict) else 0

    @property
    def device_s(self) -> float:
        """Device-seconds of training the adapter and of asking and scoring it in its trial."""
        asked = (move.evidence.get("device_s", 0.0) for move in self.moves)
        return self.learned_s + sum(seconds for seconds in asked if isinstance(seconds, int | float))

    @property
    def cost(self) -> dict[str, float]:
        """Device-seconds; with a positive uplift, also device-seconds and labelled conversations per point of uplift."""
        uplift = self.evidence.get("uplift")
        told = {"device_s": round(self.device_s, 1)}
        if isinstance(uplift, int | float) and uplift > 0:
            points = 100 * uplift
            told |= {"device_s_per_point": round(self.device_s / points, 1), "labels_per_point": round(self.labels_spent / points, 1)}
        return told

    @property
    def seconds(self) -> float:
        """One line per move, first to last."""
        return (self.moves[-1].at - self.moves[0].at).total_seconds()

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        last = self.moves[-1]
        uplift: dict[str, Any] = {key: self.evidence[key] for key in ("uplift", "low", "high") if key in self.evidence}
        return {"adapter": self.adapter, "moves": [move.move for move in self.moves], "reason": last.reason, "by": last.by, "at": last.at.isoformat(),
                "labels_spent": self.labels_spent, "seconds": self.seconds, **self.cost, **uplift}  # fmt: skip

    def as_text(self) -> str:
        """One line."""
        last, told = self.moves[-1], self.as_dict()
        uplift = f"  uplift {told['uplift']:+.3f} ({told['low']:+.3f} to {told['high']:+.3f}), {self.labels_spent} labels" if "low" in told else ""
        cost = f", {told['device_s']:g} device-s" if told["device_s"] else ""
        if "device_s_per_point" in told:
            cost += f" (a point: {told['labels_per_point']:g} labels, {told['device_s_per_point']:g} device-s)"
        return f"{last.at:%Y-%m-%d %H:%M}  {self.adapter:<16} {last.move:<12}{uplift}{cost}  by {last.by}: {last.reason[:120]}"


def history(policy: str, events: Sequence[Promotion], adapters: Sequence[AdapterVersion] = ()) -> list[TrialHistory]:
    """All trials, oldest first, with their cost. Void moves are left out; a later roll-back of production is an entry of its own."""
    standing, learned = AdapterStanding(policy), {adapter.version: adapter for adapter in adapters}
    ways: list[TrialHistory] = []
    for event in events:
        if standing.refusal(event) is not None:
            continue
        on_trial = standing.trial is not None and standing.trial.adapter == event.adapter
        goes_on = on_trial or (event.move == "promoted" and event.adapter == standing.production)  # the latter: a changed canary share
        if goes_on and (earlier := [n for n, way in enumerate(ways) if way.adapter == event.adapter]):
            ways[earlier[-1]] = replace(ways[earlier[-1]], moves=(*ways[earlier[-1]].moves, event))
        else:
            learned_s = (
                0.0 if event.move == "rolled_back" else _learned_s(learned, standing.version(event.adapter), standing.version(standing.production))
            )
            ways.append(TrialHistory(event.adapter, (event,), learned_s))
        standing = standing.after(event)
    return ways


def _learned_s(adapters: Mapping[int, AdapterVersion], version: int | None, production: int | None) -> float:
    """Device-seconds of training from production (or the base) to this version, summed over adapters."""
    seconds = 0.0
    while version is not None and version != production and version in adapters:
        seconds += adapters[version].metrics.get("device_s", 0.0)
        version = adapters[version].parent
    return seconds


def read_promotions(settings: Settings) -> list[Promotion]:
    """All moves of this policy on the log, oldest first."""
    return [event for event in _read(settings, PROMOTIONS) if event.policy == settings.policy.name]


def read_adapters(settings: Settings) -> list[AdapterVersion]:
    """All adapters of this policy on the log."""
    return [event for event in _read(settings, ADAPTERS) if event.policy == settings.policy.name]


def _read(settings: Settings, topic: Any) -> list[Any]:
    found = []
    for record in read_to_end(settings.kafka, topic, "commands", Metrics()):
        try:
            found.append(topic.decode(record.value))
        except InvalidEvent:
            continue  # as every reader of the topic does
    return found


def write_move(settings: Settings, adapter: str, move: str, by: str, reason: str, **fields: Any) -> tuple[AdapterStanding, float]:
    """Publish an operator's move. Returns the new state, and the seconds until Kafka acknowledged. Raises ConfigError, with the reason, for a
    move that every reader would treat as void."""
    event = _checked(settings, adapter, move, by, reason, fields)
    producer = Producer(settings.kafka, Metrics(), "tidemill-operator")
    try:
        began = time.monotonic()
        producer.publish(PROMOTIONS, event)
        took_s = time.monotonic() - began
    finally:
        producer.close()
    return fold(settings.policy.name, read_promotions(settings)), took_s


def refuse_void(settings: Settings, adapter: str, move: str, by: str) -> None:
    """Raises ConfigError where ``write_move`` would, and writes nothing."""
    _checked(settings, adapter, move, by, "", {})


def _checked(settings: Settings, adapter: str, move: str, by: str, reason: str, fields: Mapping[str, Any]) -> Promotion:
    """The move as an event that no reader treats as void. Raises ConfigError."""
    if by == TIDEMILL:
        raise ConfigError(f"--by {by} is reserved for the promoter: give your own name")
    event = Promotion.model_validate({
        "promotion_id": new_id("pr"), "policy": settings.policy.name, "adapter": adapter, "move": move, "by": by, "reason": reason,
        "at": datetime.now(UTC), **fields,
    })  # fmt: skip
    if (refusal := fold(settings.policy.name, read_promotions(settings)).refusal(event)) is not None:
        raise ConfigError(f"{adapter} cannot be {move}: {refusal}")
    return event


def standing_as_dict(standing: AdapterStanding, trials: Sequence[TrialHistory]) -> dict[str, Any]:
    """For ``--json``."""
    trial = standing.trial
    on_trial = None
    if trial is not None:
        on_trial = {"adapter": trial.adapter, "stage": trial.stage, "since": trial.since.isoformat(), "canary_share": trial.canary_share,
                    "awaits_approval": trial.awaits_approval, "evidence": dict(trial.evidence)}  # fmt: skip
    return {
        "production": standing.production,
        "share": standing.share,
        "previous": standing.previous,
        "trial": on_trial,
        "trials": [each.as_dict() for each in trials],
    }
