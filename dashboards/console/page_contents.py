"""The contents of each console page, as plain values for the templates. Nothing here writes HTML."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actor.promotion.promotion_stages import AdapterStanding
from dashboards.console.console_facts import Approval, ConsoleFacts, Flow, verdict_of, version_of
from dashboards.console.svg_charts import Line, chart
from streams.core.events import AdapterVersion, Attestation, Episode

PER_PAGE = 50
ADAPTERS_SHOWN = 50
LETTERS_SHOWN = 200
EXCERPT = 140


@dataclass(frozen=True)
class Arrow:
    """A topic as the ring page shows it: from where to where, and what it carries."""

    topic: str
    source: str
    target: str
    carries: str


ARROWS = (
    Arrow("episodes", "actor", "streams", "answers of the deployed agent"),
    Arrow("feedback", "people", "streams", "thumbs, ratings, comments, corrections"),
    Arrow("labels", "streams", "reward", "verdicts on episodes from all feedback so far"),
    Arrow("reward-models", "reward", "learner", "versions of the reward model"),
    Arrow("adapters", "learner", "actor", "versions of the policy"),
    Arrow("attestations", "actor", "promotion, operators", "proofs that a replica serves exactly this adapter"),
    Arrow("promotions", "promotion, operators", "actor", "promotions and roll-backs of adapters"),
    Arrow("dead-letters", "all parts", "operators", "records that could not be used"),
)


class ShownPart(Protocol):
    """What the ring page shows of a part's health (``infra/operate/part_health.py``)."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def told(self) -> str: ...
    @property
    def restarts(self) -> int: ...
    @property
    def lag(self) -> int | None: ...


BOXES = ("actor", "streams", "reward", "learner")
"""Parts that have a box on the ring page."""


def health(parts: Sequence[ShownPart], stale: bool) -> dict[str, dict[str, str]]:
    """The look (``well``, ``waits``, ``ill``, ``stale``) and the words of each part. Without news of Kafka no part looks well: whatever a part
    answers, the ring stands still."""
    kafka_ill = stale or any(part.name == "kafka" and part.state != "ready" for part in parts)
    found: dict[str, dict[str, str]] = {name: {"look": "stale", "told": "not known"} for name in BOXES}
    for part in parts:
        look = {"ready": "stale" if kafka_ill else "well", "waits": "waits", "waits for the actor": "waits", "unknown": "stale"}.get(
            part.state, "ill"
        )
        behind = f", {part.lag} behind" if part.lag else ""
        again = f", {part.restarts}× restarted" if part.restarts else ""
        found[part.name] = {"look": look, "told": f"{part.told}{behind}{again}"}
    return found


def ring(facts: ConsoleFacts, now_ms: int, learning: str = "", parts: Sequence[ShownPart] = (), stale: bool = False) -> dict[str, Any]:
    """Current values of the ring page; the page refreshes them every two seconds. ``stale``: the facts may be old."""
    flows = facts.flows(now_ms)
    model = facts.reward_models[-1] if facts.reward_models else None
    served = facts.served_after_s()
    latest = served[-1][1] if served else None
    calibration = model.calibration if model else None
    untested = "not tested yet" if model else "–"
    return {
        "stale": stale,
        "parts": health(parts, stale),
        "flows": {name: {"per_minute": f.per_minute, "total": f.total, "last": ago(f)} for name, f in flows.items()},
        "tiles": {
            "serving": facts.serving,
            "production": ", ".join(s.production or f"{name}: base" for name, s in facts.standings.items()) or "none promoted",
            "reward-model": f"v{model.version}" if model else "none yet",
            "accuracy": f"{calibration.accuracy:.0%} (guessing: {calibration.baseline:.0%})" if calibration and calibration.labels else untested,
            "ece": f"{calibration.ece:.3f}" if calibration and calibration.labels else untested,
            "learning": learning or "–",
            "adapters": str(len(facts.adapters)),
            "served-after": seconds(latest),
            "dead-letters": str(facts.reasons.total()),
        },
    }


def curves(facts: ConsoleFacts) -> list[dict[str, Any]]:
    """Charts with the numbers behind them."""
    approvals, models, adapters, served = facts.approvals(), list(facts.reward_models), list(facts.adapters.values()), facts.served_after_s()
    names = [short(a.adapter) for a in approvals]
    approval = Line("approval", [(float(i), a.interval.estimate) for i, a in enumerate(approvals)],
                    [(a.interval.low, a.interval.high) for a in approvals], joined=False)  # fmt: skip
    tested = [m for m in models if m.calibration.labels]
    reward = [
        Line("accuracy", [(m.labels, m.calibration.accuracy) for m in tested]),
        Line("always guessing the more frequent", [(m.labels, m.calibration.baseline) for m in tested], dashed=True),
        Line("calibration error (ECE)", [(m.labels, m.calibration.ece) for m in tested]),
    ]
    kl = Line("KL to the base", [(a.step, a.metrics["kl_nats"]) for a in adapters if "kl_nats" in a.metrics])
    mean = Line("mean reward", [(a.step, a.metrics["reward_mean"]) for a in adapters if "reward_mean" in a.metrics])
    latency = Line("seconds", [(float(a.version), s) for a, s in served])
    return [
        _curve("Approval by version", "Share of rated answers that people liked, with 95 % intervals. Each version answered other questions, so compare with care.",
               chart("Approval by version", [approval], "version", "liked", True, names),
               ("version", "labels", "liked", "95 % interval"),
               [(a.adapter, a.labels, f"{a.interval.estimate:.0%}", f"{a.interval.low:.0%} to {a.interval.high:.0%}") for a in approvals]),
        _curve("Reward model on unseen labels", "Each label is predicted before the model learns from it (prequential).",
               chart("Accuracy and calibration of the reward model", reward, "labels", "share", True),
               ("version", "labels", "accuracy", "guessing", "ECE"),
               [(f"v{m.version}", m.labels, f"{m.calibration.accuracy:.0%}", f"{m.calibration.baseline:.0%}", f"{m.calibration.ece:.3f}")
                for m in reversed(tested)]),
        _curve("KL to the base", "How far the policy has moved away from the base, in nats per token.",
               chart("KL to the base", [kl], "RL step", "nats"), ("adapter", "step", "KL"),
               [(a.name, a.step, f"{a.metrics['kl_nats']:.4f}") for a in reversed(adapters) if "kl_nats" in a.metrics]),
        _curve("Mean reward of rollouts", "The reward model's mean score of the learner's own samples.",
               chart("Mean reward", [mean], "RL step", "reward"), ("adapter", "step", "reward"),
               [(a.name, a.step, f"{a.metrics['reward_mean']:.3f}") for a in reversed(adapters) if "reward_mean" in a.metrics]),
        _curve("From thumb to served", "Time from the newest feedback that an adapter learned from until a replica attested the adapter.",
               chart("Seconds from thumb to served", [latency], "version", "seconds"), ("adapter", "time"),
               [(a.name, seconds(s)) for a, s in reversed(served)]),
    ]  # fmt: skip


def adapters(facts: ConsoleFacts) -> list[dict[str, Any]]:
    """The newest adapters, newest first, and production: with lineage, evidence and state."""
    approvals = {a.adapter: a for a in facts.approvals()}
    newest = list(reversed(facts.adapters.values()))
    return [
        _adapter(a, facts, approvals) for place, a in enumerate(newest) if place < ADAPTERS_SHOWN or a.name == facts.standing(a.policy).production
    ]


def episode_row(episode: Episode, facts: ConsoleFacts) -> dict[str, Any]:
    """One line of a list of episodes."""
    label = facts.labels.get(episode.episode_id)
    return {
        "id": episode.episode_id,
        "at": episode.ended_at.strftime("%Y-%m-%d %H:%M:%S"),
        "person": episode.user_id or "–",
        "took": seconds((episode.ended_at - episode.started_at).total_seconds()),
        "adapter": episode.adapter or "base",
        "asked": cut(episode.messages[-1].text if episode.messages else ""),
        "answer": cut(episode.answer),
        "verdict": verdict_of(label),
        "outcome": episode.outcome.value,
    }


def letters(facts: ConsoleFacts, reason: str) -> tuple[list[dict[str, Any]], int]:
    """The newest dead letters, newest first, and their total number."""
    found = [letter for letter in reversed(facts.letters.values()) if not reason or letter.event.reason == reason]
    shown = found[:LETTERS_SHOWN]
    return [{"offset": letter.offset, "event": letter.event, "bytes": readable(letter.event.record_base64)} for letter in shown], len(found)


def readable(record_base64: str, limit: int = 2000) -> str:
    """The stored bytes as text; bytes that are not text are replaced."""
    try:
        raw = base64.b64decode(record_base64, validate=True)
    except binascii.Error:
        return "(cannot be read)"
    told = raw[:limit].decode(errors="replace")
    return told + (f"… ({len(raw)} bytes)" if len(raw) > limit else "")


def ago(flow: Flow) -> str:
    """Time since the last record, in words."""
    return "never" if flow.idle_s is None else f"{seconds(flow.idle_s)} ago"


def seconds(value: float | None) -> str:
    """A time span in words."""
    if value is None:
        return "–"
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h" if value < 172_800 else f"{value / 86_400:.0f} d"


def cut(text: str, limit: int = EXCERPT) -> str:
    """The text as one line of at most ``limit`` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def short(adapter: str) -> str:
    """``@7`` for ``default@7``."""
    return f"@{version_of(adapter)[1]}" if "@" in adapter else adapter


def _curve(title: str, note: str, drawn: Any, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    return {"title": title, "note": note, "chart": drawn, "head": head, "rows": rows}


def stands(adapter: AdapterVersion, standing: AdapterStanding, attestations: Sequence[Attestation]) -> str:
    """The adapter's state in a few words."""
    trial = standing.trial
    if adapter.name == standing.production:
        return "production"
    if trial is not None and trial.adapter == adapter.name:
        if trial.awaits_approval:
            return "awaits approval"
        return f"canary {trial.canary_share:.0%}" if trial.stage == "canary" else trial.stage
    if adapter.name in standing.bad:
        return "rejected"
    if any(told.passed for told in attestations):
        return "attested"
    return "refused" if attestations else "published"


def _adapter(adapter: AdapterVersion, facts: ConsoleFacts, approvals: Mapping[str, Approval]) -> dict[str, Any]:
    attested = [a for a in facts.attestations.values() if a.adapter == adapter.name]
    standing = facts.standing(adapter.policy)
    on_trial = standing.trial is not None and standing.trial.adapter == adapter.name
    return {
        "adapter": adapter,
        "approval": approvals.get(adapter.name),
        "attestations": attested,
        "moves": [move for move in reversed(facts.moves) if move.event.adapter == adapter.name],
        "stands": stands(adapter, standing, attested),
        "production": standing.production or "the base",
        "previous": standing.previous or "the base",
        "may_promote": adapter.name != standing.production and any(a.passed for a in attested),
        "may_roll_back": adapter.name == standing.production or (on_trial and standing.trial is not None and standing.trial.stage == "canary"),
    }
