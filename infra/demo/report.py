"""The result of a run: on the terminal, as JSON, and as a self-contained page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import indent
from typing import Any, Literal

from infra.demo.broken_arrows import all_refused, lost
from infra.demo.held_out_exam import PairsAsked
from infra.demo.intervals import Interval, paired_difference, share
from infra.demo.machine_facts import MachineFacts
from infra.demo.skills_kept import Skills
from infra.operate.log_watch import LogFacts
from infra.settings.config import Settings
from infra.simulated_people.preferences import PREFERENCES
from infra.simulated_people.simulated_talk import Answer, TalkTally
from reward.trust.hacking_guards import GuardFinding, inspect
from streams.core.events import RewardModelVersion
from streams.join.ledger import Ledger

Verdict = Literal["closed", "not shown", "broken"]


@dataclass(frozen=True)
class Report:
    """One run of the demo. Approval is that of the *served* policy, by the simulated people's true preference, on held-out questions."""

    settings: Settings
    seconds: float
    before: list[Answer]
    after: list[Answer]
    """Answers to the same questions; empty when an arrow was broken."""
    tally: TalkTally
    facts: LogFacts
    ledger: Ledger
    samples: list[tuple[float, float, str]]
    peak_memory_mib: float
    restarts: dict[str, int]
    machine: MachineFacts
    pairs: PairsAsked
    """All pairs of held-out questions: those asked during the run, and ``before`` with ``after``. They decide whether the rise is shown."""
    skills: Skills | None = None
    """Log-likelihood of fixed texts under base and served policy; None when the actor did not return it."""
    broken_arrow: str | None = None
    """The broken arrow found during the run, if any."""

    @cached_property
    def approval_before(self) -> Interval:
        return share([answer.approved for answer in self.before])

    @cached_property
    def approval_after(self) -> Interval:
        return share([answer.approved for answer in self.after])

    @cached_property
    def rise(self) -> Interval:
        """Approval after minus before, paired by question."""
        if not self.after:
            return Interval(0.0, -1.0, 1.0)
        seed = self.settings.people.seed
        return paired_difference([a.approved for a in self.before], [a.approved for a in self.after], seed)

    @property
    def served_after(self) -> list[str]:
        """Adapters that answered the questions after training."""
        return sorted({answer.adapter for answer in self.after})

    @cached_property
    def guards(self) -> tuple[GuardFinding, ...]:
        """Results of the hacking guards on the last answers, compared with the base's."""
        return inspect([a.text for a in self.after], [a.text for a in self.before])

    @cached_property
    def broken(self) -> list[str]:
        """All broken arrows, one sentence each; empty when the ring works."""
        passed = {a.adapter for a in self.facts.attestations if a.passed}
        refused = [a.reason for a in self.facts.attestations if not a.passed]
        asked, failures = self.tally.answers + self.tally.failed, self.tally.failures
        unaccounted = None if self.ledger.balanced else "the arrow episodes, feedback → labels is broken: the ledger does not balance"
        found = [
            lost("people → actor", self.tally.failed, asked, failures[-1] if failures else ""),
            lost("people → feedback", self.tally.thumbs_lost, self.tally.thumbs + self.tally.thumbs_lost),
            unaccounted,
            self.broken_arrow,
            all_refused(len(passed), refused),
        ]
        return [each for each in found if each]

    @property
    def verdict(self) -> Verdict:
        """``closed``: no arrow is broken, and the served policy is liked better. ``not shown``: no arrow is broken, but a rise is not shown."""
        if self.broken:
            return "broken"
        return "closed" if self.pairs.shown_with is not None else "not shown"

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        if self.verdict == "broken":
            return "The ring is broken: " + "; ".join(self.broken) + "."
        if self.verdict == "closed":
            return "The loop closed, and the people like the served policy better."
        if not any(a.passed for a in self.facts.attestations):
            return f"No arrow is broken, but {self.seconds / 60:.0f} minutes were too short: no adapter was served yet."
        return f"The ring works: no arrow is broken. But the rise was not shown in {self.seconds / 60:.0f} minutes."

    def figures(self) -> dict[str, Any]:
        """Everything measured, for ``report.json``."""
        facts = self.facts
        return {
            "verdict": self.verdict,
            "broken": self.broken,
            "seed": self.settings.people.seed,
            "seconds": round(self.seconds, 1),
            "approval_before": self.approval_before.__dict__,
            "approval_after": self.approval_after.__dict__,
            "approval_rise": self.rise.__dict__,
            "pairs": {
                "better": self.pairs.rise.better, "same": self.pairs.rise.same, "worse": self.pairs.rise.worse,
                "rise": self.pairs.rise.interval.__dict__, "shown_with": self.pairs.shown_with, "failed": self.pairs.failed,
            },
            "machine": self.machine.figures(facts.adapters),
            "served_after": self.served_after,
            "simulated_people": {
                "answers": self.tally.answers, "requests_failed": self.tally.failed, "thumbs": self.tally.thumbs,
                "thumbs_up": self.tally.thumbs_up, "thumbs_lost": self.tally.thumbs_lost,
            },
            "labels": len(facts.labels),
            "reward_models": [{"version": v.version, "labels": v.labels, **v.calibration.model_dump()} for v in facts.reward_models],
            "adapters": [{"version": a.version, "step": a.step, "reward_model": a.reward_model_version, **a.metrics} for a in facts.adapters],
            "attested": len({a.adapter for a in facts.attestations if a.passed}),  # a replica repeats its attestations
            "refused": {a.adapter: a.reason for a in facts.attestations if not a.passed},
            "dead_letters": dict(facts.dead_letters),
            "ledger": str(self.ledger).splitlines(),
            "first_thumb_to_first_adapter_s": facts.first_thumb_to_adapter_s(),
            "peak_memory_mib": round(self.peak_memory_mib),
            "guards": [str(finding) for finding in self.guards if finding.tripped],
            "skills_nats": None if self.skills is None else {"base": self.skills.base_nats, "served": self.skills.served_nats},
            "parts_restarted": self.restarts,
        }  # fmt: skip

    def rows(self) -> list[tuple[str, str]]:
        """The summary: names and values."""
        facts, figures = self.facts, self.figures()
        models = facts.reward_models
        refused = figures["refused"]
        seconds = figures["first_thumb_to_first_adapter_s"]
        return [
            ("approval before", _percent(self.approval_before) + "  (base)"),
            ("approval after", _percent(self.approval_after) + f"  ({', '.join(self.served_after)})"),
            ("rise", _points(self.rise)),
            ("shown", self._shown()),
            ("thumbs", f"{self.tally.thumbs} by simulated people ({self.tally.thumbs_up} up), on {self.tally.answers} answers;"
             f" {facts.thumbs} in labels"),
            ("requests failed", str(self.tally.failed) + (f", such as {self.tally.failures[-1]}" if self.tally.failed else "")),
            ("reward models", f"{len(models)}; " + (goodness(models[-1]) if models else "none")),
            ("adapters", f"{len(facts.adapters)} published, {figures['attested']} loaded and attested, {len(refused)} refused"
             + "".join(f"; {name}: {reason}" for name, reason in list(refused.items())[:3])),
            ("first thumb → adapter", "–" if seconds is None else f"{seconds:.0f} s"),
            ("skills kept", _skills(self.skills)),
            ("hack detectors", _guards(self.guards)),
            ("ledger", str(self.ledger)),
            ("dead letters", ", ".join(f"{n} {reason}" for reason, n in facts.dead_letters.items()) or "none"),
            *self.machine.rows(self.settings, facts.adapters, self.seconds),
            ("peak memory", f"{self.peak_memory_mib / 1024:.1f} GiB, all processes"),
            ("time", f"{self.seconds / 60:.1f} min, seed {self.settings.people.seed}"),
            *([("restarted", ", ".join(f"{name} ×{n}" for name, n in self.restarts.items()))] if self.restarts else []),
        ]  # fmt: skip

    def as_text(self) -> str:
        """Text for the terminal."""
        pairs = "\n".join(
            f"  {a.question.text}\n    before {_mark(a)} {_short(a.text)}\n    after  {_mark(b)} {_short(b.text)}"
            for a, b in list(zip(self.before, self.after, strict=False))[:4]
        )
        rows = "\n".join(f"  {name:<21} {indent(value, ' ' * 24).lstrip()}" for name, value in self.rows())
        return f"\n{self.words}\n\n{rows}\n\n{pairs}"

    def _shown(self) -> str:
        rise, pairs = self.pairs.rise, self.pairs.rise.pairs
        if not pairs:
            return "no adapter answered a held-out question"
        whether = f"with {self.pairs.shown_with} of {pairs}" if self.pairs.shown_with is not None else f"not, by {pairs}"
        return f"{whether} pairs (base against adapter, asked during the run): {_points(rise.interval)} on average, valid at any time"


def write_json(report: Report, path: Path) -> None:
    """Write the figures and all held-out answers."""
    pairs = [
        {"question": a.question.text, "before": a.text, "approved_before": a.approved, "after": b.text, "approved_after": b.approved}
        for a, b in zip(report.before, report.after, strict=False)
    ]
    path.write_text(json.dumps({**report.figures(), "held_out": pairs}, indent=1))


def preference_words(report: Report) -> str:
    """What the simulated people like, as text."""
    return PREFERENCES[report.settings.people.preference].words


def _percent(interval: Interval) -> str:
    return f"{interval.estimate:.0%}  [{interval.low:.0%}, {interval.high:.0%}]"


def _points(interval: Interval) -> str:
    return f"{interval.estimate * 100:+.0f} points  [{interval.low * 100:+.0f}, {interval.high * 100:+.0f}]"


def _skills(skills: Skills | None) -> str:
    if skills is None:
        return "not measured: the actor did not answer"
    served = f"{skills.served_nats:.2f} under the served policy ({skills.change_nats:+.2f})"
    return f"{skills.base_nats:.2f} nats per token of fixed texts under the base, {served}"


def _guards(found: Sequence[GuardFinding]) -> str:
    tripped = [str(finding) for finding in found if finding.tripped]
    return "; ".join(tripped) or f"quiet: none of {len(found)} rules tripped on the last answers"


def goodness(model: RewardModelVersion) -> str:
    """How much better than guessing the reward model is on unseen labels."""
    told = model.calibration
    if not told.labels:
        return f"the last, v{model.version}, on {model.labels} labels, not tested yet"
    words = [] if told.auc is None else [f"AUC {told.auc:.2f} (guessing: 0.50)"]
    if told.log_loss is not None and told.baseline_log_loss is not None:
        words.append(f"log loss {told.log_loss:.2f} against {told.baseline_log_loss:.2f} for always guessing the base rate")
    words.append(f"{told.accuracy:.0%} right against {told.baseline:.0%}")
    return f"the last, v{model.version}, on {told.labels} unseen labels: {'; '.join(words)}; ECE {told.ece:.2f}"


def _mark(answer: Answer) -> str:
    return "✓" if answer.approved else "✗"


def _short(text: str, limit: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
