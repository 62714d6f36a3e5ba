"""What a run came to: the figures, in words on the terminal, as JSON, and as a self-contained page."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import indent
from typing import Any

from infra.demo.intervals import Interval, paired_difference, share
from infra.demo.simulated_people import PREFERENCES
from infra.demo.simulated_talk import Answer, TalkTally
from infra.demo.skills_kept import Skills
from infra.operate.log_watch import LogFacts
from infra.settings.config import Settings
from streams.join.ledger import Ledger


@dataclass(frozen=True)
class Report:
    """One run of the demo. Approval is of the *served* policy, under the simulated people's true preference, on held-out questions."""

    settings: Settings
    seconds: float
    before: list[Answer]
    after: list[Answer]
    tally: TalkTally
    facts: LogFacts
    ledger: Ledger
    samples: list[tuple[float, float, str]]
    peak_memory_mib: float
    restarts: dict[str, int]
    skills: Skills | None = None
    """How likely frozen texts are to the base and to what is served; none when the actor did not say."""

    @cached_property
    def approval_before(self) -> Interval:
        return share([answer.approved for answer in self.before])

    @cached_property
    def approval_after(self) -> Interval:
        return share([answer.approved for answer in self.after])

    @cached_property
    def rise(self) -> Interval:
        """After minus before, paired by question."""
        seed = self.settings.people.seed
        return paired_difference([a.approved for a in self.before], [a.approved for a in self.after], seed)

    @property
    def served_after(self) -> list[str]:
        """What answered the last questions."""
        return sorted({answer.adapter or "base" for answer in self.after})

    @property
    def doubts(self) -> list[str]:
        """Every reason not to say that the loop closed; none when it did."""
        found = []
        if not any(a.passed for a in self.facts.attestations):
            found.append("no adapter was attested and served")
        if self.rise.low <= 0:
            found.append(f"approval did not rise beyond its interval ({_points(self.rise)})")
        if self.tally.failed:
            found.append(f"{self.tally.failed} requests failed, such as {self.tally.failures[-1]}")
        if self.tally.thumbs_lost:
            found.append(f"{self.tally.thumbs_lost} thumbs were not taken")
        if not self.ledger.balanced:
            found.append("the ledger does not balance")
        return found

    @property
    def closed(self) -> bool:
        """The loop closed and approval rose beyond its interval."""
        return not self.doubts

    def figures(self) -> dict[str, Any]:
        """Everything measured, for ``report.json``."""
        facts = self.facts
        return {
            "closed": self.closed,
            "doubts": self.doubts,
            "seed": self.settings.people.seed,
            "seconds": round(self.seconds, 1),
            "approval_before": self.approval_before.__dict__,
            "approval_after": self.approval_after.__dict__,
            "approval_rise": self.rise.__dict__,
            "served_after": self.served_after,
            "simulated_people": {
                "answers": self.tally.answers, "requests_failed": self.tally.failed, "thumbs": self.tally.thumbs,
                "thumbs_up": self.tally.thumbs_up, "thumbs_lost": self.tally.thumbs_lost,
            },
            "labels": len(facts.labels),
            "reward_models": [{"version": v.version, "labels": v.labels, **v.calibration.model_dump()} for v in facts.reward_models],
            "adapters": [{"version": a.version, "step": a.step, "reward_model": a.reward_model_version, **a.metrics} for a in facts.adapters],
            "attested": len({a.adapter for a in facts.attestations if a.passed}),  # a replica says so again from time to time
            "refused": {a.adapter: a.reason for a in facts.attestations if not a.passed},
            "dead_letters": dict(facts.dead_letters),
            "ledger": str(self.ledger).splitlines(),
            "first_thumb_to_first_adapter_s": facts.first_thumb_to_adapter_s(),
            "peak_memory_mib": round(self.peak_memory_mib),
            "skills_nats": None if self.skills is None else {"base": self.skills.base_nats, "served": self.skills.served_nats},
            "parts_restarted": self.restarts,
        }  # fmt: skip

    def rows(self) -> list[tuple[str, str]]:
        """The summary: name and value."""
        facts, figures = self.facts, self.figures()
        models = facts.reward_models
        refused = figures["refused"]
        seconds = figures["first_thumb_to_first_adapter_s"]
        return [
            ("approval before", _percent(self.approval_before) + "  (base)"),
            ("approval after", _percent(self.approval_after) + f"  ({', '.join(self.served_after)})"),
            ("rise", _points(self.rise)),
            ("thumbs", f"{self.tally.thumbs} by simulated people ({self.tally.thumbs_up} up), on {self.tally.answers} answers;"
             f" {facts.thumbs} in labels"),
            ("requests failed", str(self.tally.failed)),
            ("reward models", f"{len(models)}; " + (_accuracy(models[0], "first") + ", " + _accuracy(models[-1], "last") if models else "none")),
            ("adapters", f"{len(facts.adapters)} published, {figures['attested']} loaded and attested, {len(refused)} refused"
             + "".join(f"; {name}: {reason}" for name, reason in list(refused.items())[:3])),
            ("first thumb → adapter", "–" if seconds is None else f"{seconds:.0f} s"),
            ("skills kept", _skills(self.skills)),
            ("ledger", str(self.ledger)),
            ("dead letters", ", ".join(f"{n} {reason}" for reason, n in facts.dead_letters.items()) or "none"),
            ("peak memory", f"{self.peak_memory_mib / 1024:.1f} GiB, all processes"),
            ("time", f"{self.seconds / 60:.1f} min, seed {self.settings.people.seed}"),
            *([("restarted", ", ".join(f"{name} ×{n}" for name, n in self.restarts.items()))] if self.restarts else []),
        ]  # fmt: skip

    def as_text(self) -> str:
        """For the terminal."""
        verdict = "The loop closed, and the people like the served policy better." if self.closed else "Not shown: " + "; ".join(self.doubts) + "."
        pairs = "\n".join(
            f"  {a.question.text}\n    before {_mark(a)} {_short(a.text)}\n    after  {_mark(b)} {_short(b.text)}"
            for a, b in list(zip(self.before, self.after, strict=True))[:4]
        )
        rows = "\n".join(f"  {name:<21} {indent(value, ' ' * 24).lstrip()}" for name, value in self.rows())
        return f"\n{verdict}\n\n{rows}\n\n{pairs}"


def write_json(report: Report, path: Path) -> None:
    """The figures and every held-out answer."""
    pairs = [
        {"question": a.question.text, "before": a.text, "approved_before": a.approved, "after": b.text, "approved_after": b.approved}
        for a, b in zip(report.before, report.after, strict=True)
    ]
    path.write_text(json.dumps({**report.figures(), "held_out": pairs}, indent=1))


def preference_words(report: Report) -> str:
    """What the simulated people like, in words."""
    return PREFERENCES[report.settings.people.preference].words


def _percent(interval: Interval) -> str:
    return f"{interval.estimate:.0%}  [{interval.low:.0%}, {interval.high:.0%}]"


def _points(interval: Interval) -> str:
    return f"{interval.estimate * 100:+.0f} points  [{interval.low * 100:+.0f}, {interval.high * 100:+.0f}]"


def _skills(skills: Skills | None) -> str:
    if skills is None:
        return "not measured: the actor did not answer"
    return f"{skills.base_nats:.2f} nats a token of frozen texts by the base, {skills.served_nats:.2f} by what is served ({skills.change_nats:+.2f})"


def _accuracy(model: Any, which: str) -> str:
    told = model.calibration
    if not told.labels:
        return f"{which} v{model.version}: on {model.labels} labels, not tested yet"
    ranking = "" if told.auc is None else f", AUC {told.auc:.2f}"
    return (
        f"{which} v{model.version}: {told.accuracy:.0%} right on {told.labels} unseen labels"
        f" (always guessing: {told.baseline:.0%}{ranking}, ECE {told.ece:.2f})"
    )


def _mark(answer: Answer) -> str:
    return "✓" if answer.approved else "✗"


def _short(text: str, limit: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
